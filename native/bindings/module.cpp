#include "bindings/bindings.h"

#include "runner/errors.h"

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

py::object to_exception(const pyfastv::error & err) {
    const auto type = py::module_::import("pyfastv.errors").attr(class_name(err.kind));

    const auto what = to_text(err.what());

    return err.kind == pyfastv::error_kind::context_length ? type(what, err.n_tokens, err.n_ctx) : type(what);
}

py::str to_text(const std::string & bytes) {
    return py::reinterpret_steal<py::str>(PyUnicode_DecodeUTF8(bytes.data(), bytes.size(), "replace"));
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

    bind_header(m);
    bind_info(m);
    bind_engine(m);
    bind_slots(m);
    bind_grammar(m);
    bind_kernels(m);
    bind_reduce(m);
    bind_regex(m);
}
