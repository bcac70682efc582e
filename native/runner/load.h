#pragma once

#include "runner/options.h"
#include "runner/prompt.h"

#include "llama-cpp.h"

#include <cstdint>

namespace pyfastv {

// What to make a context of, beside the options of an engine.
struct context_size {
    uint32_t n_ctx;     // cells, for all sequences
    uint32_t n_seq_max; // sequences that share them
};

// All of these throw error. `stop` is asked often from every computation and must live as long as what is returned; true:
// give up the computation.

llama_model_ptr load_model(const engine_options & options);

// without stages, whatever the environment says
llama_context_ptr make_context(llama_model * model, const engine_options & options, context_size size, const interrupt_fn & stop);

// without Turbo, whatever the environment says; `marker` stands for a picture in a prompt
mtmd_context_ptr load_vision(const llama_model * model, const engine_options & options, const std::string & marker, const interrupt_fn & stop);

// random, so that no text can forge it
std::string random_marker();

} // namespace pyfastv
