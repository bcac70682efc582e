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
// Building the graphs (llama/stage_graph.h) is the second, final check.
const char * unsupported_reason(const llama_model & model);

// Why a cut cannot be at this layer; nullptr if it can. A cut that reads no attention can be at more layers.
const char * unsupported_layer(const llama_model & model, int32_t layer, bool reads_attention);

// Cuts at layers where none can be move to the next where one can, and those behind them out of their way. None moves if one
// of them finds no layer: who gives a context stages says why. Throws std::invalid_argument as validate() does.
void fit_layers(const llama_model & model, pyfastv_params & params);

// Why a rule is not possible with this model; nullptr if it is.
const char * unsupported_rule(const llama_model & model, const pyfastv_cut & cut);

} // namespace pyfastv
