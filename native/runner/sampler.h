#pragma once

#include "runner/options.h"

#include "llama-cpp.h"

namespace pyfastv {

// Throws error(option) if the grammar does not parse.
llama_sampler_ptr make_sampler(const llama_vocab * vocab, const sampling_options & options, int32_t n_ctx);

} // namespace pyfastv
