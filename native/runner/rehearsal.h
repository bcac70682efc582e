#pragma once

#include "runner/options.h"

#include "llama.h"
#include "mtmd.h"

#include <string>

namespace pyfastv {

// What a file got wrong (shapes, types) shows when a graph is built or computed: ggml asserts it. In a worker thread that
// ends the process, so that a model is tried first on the thread that loads it, alone. Each graph is built in full, and
// computed for a twentieth of a second at most, which is all of a small model and the first layers of a large one.
//
// Both throw error(model) with the reason, error(out_of_memory).

// one token, and a few; the context is empty afterwards, its abort callback is what is given here
void rehearse(llama_context * ctx, const engine_options & options, const interrupt_fn & stop);

// a blank picture
void rehearse(mtmd_context * vision, const llama_model * model, const engine_options & options, const std::string & marker);

// for mtmd_context_params.cb_eval: is there a rehearsal on this thread, and what does it answer?
bool rehearses();
bool rehearsal_goes_on(bool ask);

// for llama_set_abort_callback; data: an interrupt_fn
bool asks_interrupt(void * data);

} // namespace pyfastv
