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

// Why a cut cannot be at this layer; nullptr if it can. A cut that reads no attention can be at more layers.
const char * unsupported_layer(const llama_model & model, int32_t layer, bool reads_attention);

// does the rule need the attention at the last layer before the cut?
bool reads_attention(const pyfastv_cut & cut);

// Why a rule is not possible with this model; nullptr if it is.
const char * unsupported_rule(const llama_model & model, const pyfastv_cut & cut);

// does the score count more rows than the last?
bool every_row_votes(pyfastv_score score);

// These throw std::invalid_argument that names the value and its limits.
void validate_cut(const pyfastv_cut & cut); // all but its layer
void validate(const pyfastv_params & params, int32_t n_layer);

} // namespace pyfastv
