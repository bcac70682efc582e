#pragma once

#include "pyfastv.h"

#include <cstdint>
#include <stdexcept>

struct llama_model;

namespace pyfastv {

// this model or context cannot be run in stages; what() completes "because ..."
struct unsupported : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Why a model cannot be run in stages, from its header alone; nullptr if nothing there speaks against it.
// Building the graphs (graph/stage_graph.h) is the second, final check.
const char * unsupported_reason(const llama_model & model);

// Throws std::invalid_argument that names the value and its limits.
void validate(const pyfastv_params & params, int32_t n_layer);

} // namespace pyfastv
