#include "bindings/bindings.h"

#include "regex/split.h"

#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

namespace py = pybind11;

using namespace py::literals;

static std::optional<std::vector<size_t>> regex_split(const std::wstring & text, const std::wstring & expression) {
    std::vector<size_t> res;
    if (!pyfastv::regex_split(text, expression, { text.size() }, res)) {
        return std::nullopt;
    }
    return res;
}

void bind_regex(py::module_ & m) {
    m.def("regex_split", &regex_split, "text"_a, "expression"_a);
}
