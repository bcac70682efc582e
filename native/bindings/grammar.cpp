#include "bindings/bindings.h"

#include "grammar/schema.h"
#include "runner/errors.h"

#include <exception>
#include <string>

namespace py = pybind11;

using namespace py::literals;

// its caller, pyfastv/constraints/grammar.py, bounds the depth and the length of the strings
static std::string json_schema_to_gbnf(const std::string & schema) {
    const py::gil_scoped_release release;
    try {
        return pyfastv::schema_to_gbnf(schema);
    } catch (const std::exception & err) {
        throw pyfastv::error(pyfastv::error_kind::option, err.what());
    }
}

void bind_grammar(py::module_ & m) {
    m.def("json_schema_to_gbnf", &json_schema_to_gbnf, "schema"_a);
}
