#pragma once

#include "guard/abort_guard.h"

#include <pybind11/pybind11.h>

#include <string>
#include <type_traits>

namespace pyfastv {
struct error;
}

// one function for each class or group of functions of pyfastv._native; the contract is pyfastv/_native.pyi
void bind_header(pybind11::module_ & m);
void bind_info  (pybind11::module_ & m);
void bind_engine(pybind11::module_ & m);
void bind_options(pybind11::module_ & m);
void bind_reduce(pybind11::module_ & m);
void bind_grammar(pybind11::module_ & m);
void bind_kernels(pybind11::module_ & m);
void bind_regex(pybind11::module_ & m);
void bind_rewrite(pybind11::module_ & m);
void bind_settings(pybind11::module_ & m);
void bind_tools(pybind11::module_ & m);

// Around all that llama.cpp and ggml do: no GIL, and ggml's aborts are errors.
struct native_scope {
    const pybind11::gil_scoped_release release;
    const pyfastv::abort_guard         guard;
};

// an instance of its class in pyfastv.errors
pybind11::object to_exception(const pyfastv::error & err);

// text of a file or of a message that quotes one: it may have any bytes, and those that are not UTF-8 become U+FFFD
pybind11::str to_text(const std::string & bytes);

// null: None
pybind11::object optional_text(const char * bytes);

// a getter that computes nothing, of what `self.get()` gives
template <typename Self, typename Class, typename T>
auto guarded(T (Class::*f)() const) {
    return [f](Self & self) {
        const pyfastv::abort_guard guard;
        if constexpr (std::is_same_v<T, const char *>) {
            return optional_text((self.get().*f)());
        } else if constexpr (std::is_convertible_v<T, std::string>) {
            return to_text((self.get().*f)());
        } else {
            return (self.get().*f)();
        }
    };
}
