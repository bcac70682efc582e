#pragma once

#include <pybind11/pybind11.h>

// one function for each class or group of functions of pyfastv._native; the contract is pyfastv/_native.pyi
void bind_info  (pybind11::module_ & m);
void bind_engine(pybind11::module_ & m);
void bind_reduce(pybind11::module_ & m);
