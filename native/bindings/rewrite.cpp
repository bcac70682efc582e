// GGUF files written anew with other types, and how fast products with these types are

#include "bindings/bindings.h"

#include "files/rewrite.h"
#include "products/speed.h"
#include "runner/errors.h"

#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <cerrno>
#include <exception>
#include <filesystem>
#include <map>
#include <stdexcept>
#include <string>
#include <system_error>
#include <tuple>

namespace py = pybind11;

namespace {

ggml_type find_type(const std::string & name) {
    for (const auto type : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_Q8_0 }) {
        if (name == ggml_type_name(type)) {
            return type;
        }
    }
    throw std::invalid_argument("\"" + name + "\" is not a type of rewritten tensors");
}

using planned_tensor = std::tuple<std::string, int64_t, int64_t>;

void rewrite_gguf(const std::filesystem::path & source, const std::filesystem::path & target, const std::map<std::string, planned_tensor> & tensors,
        const std::map<std::string, uint32_t> & keys, const py::object & progress) {
    pyfastv::rewrite_plan plan;
    for (const auto & [name, planned] : tensors) {
        const auto & [type, n_columns, n_rows] = planned;
        plan.tensors[name] = { find_type(type), n_columns, n_rows };
    }
    plan.keys = keys;

    std::exception_ptr raised; // in Python, by the callback or by Ctrl-C
    const auto advance = [&](uint64_t done, uint64_t total) {
        const py::gil_scoped_acquire gil;
        try {
            if (!progress.is_none()) {
                progress(done, total);
            }
            if (PyErr_CheckSignals() != 0) {
                throw py::error_already_set();
            }
        } catch (...) {
            raised = std::current_exception();
        }
        return !raised;
    };

    try {
        const native_scope native{};
        pyfastv::rewrite_gguf(source.string(), target.string(), plan, 0, advance);
    } catch (const pyfastv::interrupted &) {
        std::rethrow_exception(raised);
    } catch (const std::system_error & err) {
        errno = err.code().value();
        PyErr_SetFromErrno(PyExc_OSError);
        throw py::error_already_set();
    }
}

double product_seconds(const std::string & type, int64_t n_in, int64_t n_out, int64_t n_rows, int n_threads) {
    const auto         found = find_type(type);
    const native_scope native{};
    return pyfastv::product_seconds(found, n_in, n_out, n_rows, n_threads);
}

} // namespace

void bind_rewrite(py::module_ & m) {
    using namespace py::literals;

    m.def("rewrite_gguf", &rewrite_gguf, "source"_a, "target"_a, py::kw_only(), "tensors"_a, "keys"_a, "progress"_a = py::none());
    m.def("product_seconds", &product_seconds, "type"_a, "n_in"_a, "n_out"_a, "n_rows"_a, "n_threads"_a);
}
