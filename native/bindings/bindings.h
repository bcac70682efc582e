#pragma once

#include "guard/abort_guard.h"

#include <pybind11/pybind11.h>

namespace pyfastv {
struct error;
}

// one function for each class or group of functions of pyfastv._native; the contract is pyfastv/_native.pyi
void bind_header(pybind11::module_ & m);
void bind_info  (pybind11::module_ & m);
void bind_engine(pybind11::module_ & m);
void bind_slots (pybind11::module_ & m);
void bind_reduce(pybind11::module_ & m);
void bind_grammar(pybind11::module_ & m);
void bind_kernels(pybind11::module_ & m);

// Around all that llama.cpp and ggml do: no GIL, and ggml's aborts are errors.
struct native_scope {
    const pybind11::gil_scoped_release release;
    const pyfastv::abort_guard         guard;
};

// an instance of its class in pyfastv.errors
pybind11::object to_exception(const pyfastv::error & err);
