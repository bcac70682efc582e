#include "bindings/bindings.h"

#include "runner/errors.h"
#include "runner/forks.h"

#include <cstring>
#include <exception>

namespace py = pybind11;

static const char * class_name(pyfastv::error_kind kind) {
    using pyfastv::error_kind;

    switch (kind) {
        case error_kind::option:         return "OptionError";
        case error_kind::model:          return "ModelError";
        case error_kind::unsupported:    return "UnsupportedModelError";
        case error_kind::image:          return "ImageError";
        case error_kind::context_length: return "ContextLengthError";
        case error_kind::out_of_memory:  return "OutOfMemoryError";
        case error_kind::decode:         return "DecodeError";
        case error_kind::closed:         return "ClosedError";
    }
    return "Error";
}

static py::str decoded(const std::string & bytes, const char * errors) {
    PyObject * text = PyUnicode_DecodeUTF8(bytes.data(), (Py_ssize_t) bytes.size(), errors);
    if (!text) {
        throw py::error_already_set();
    }
    return py::reinterpret_steal<py::str>(text);
}

py::object to_exception(const pyfastv::error & err) {
    const auto type = py::module_::import("pyfastv.errors").attr(class_name(err.kind));

    // it may name a file whose path is not UTF-8, and is to be printed
    const auto text = decoded(err.what(), "backslashreplace");

    return err.kind == pyfastv::error_kind::context_length ? type(text, err.n_tokens, err.n_ctx) : type(text);
}

py::str to_text(const std::string & bytes) {
    return decoded(bytes, "replace");
}

py::object optional_text(const char * bytes) {
    return bytes ? py::object(to_text(bytes)) : py::none();
}

PYBIND11_MODULE(_native, m) {
    m.doc() = "llama.cpp, mtmd and the stages. Private; use pyfastv.Runner.";

    py::register_exception_translator([](std::exception_ptr p) {
        try {
            std::rethrow_exception(p);
        } catch (const pyfastv::error & err) {
            const auto instance = to_exception(err);
            PyErr_SetObject(py::type::of(instance).ptr(), instance.ptr());
        } catch (const std::bad_alloc &) {
            PyErr_SetString(py::module_::import("pyfastv.errors").attr("OutOfMemoryError").ptr(), "out of memory");
        }
    });

    m.def("n_forks", &pyfastv::n_forks);

    bind_header(m);
    bind_info(m);
    bind_options(m);
    bind_engine(m);
    bind_grammar(m);
    bind_kernels(m);
    bind_reduce(m);
    bind_regex(m);
    bind_rewrite(m);
    bind_settings(m);
    bind_tools(m);
}
