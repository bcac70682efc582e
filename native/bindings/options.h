#pragma once

#include "runner/options.h"

#include <pybind11/pybind11.h>

// keywords to options, by the names of their fields
pyfastv::engine_options   to_engine_options  (const pybind11::kwargs & given);
pyfastv::sampling_options to_sampling_options(const pybind11::kwargs & given);
