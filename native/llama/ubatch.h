#pragma once

#include "stages/sequence.h"
#include "llama/interfaces.h"

#include <cstdint>
#include <vector>

namespace pyfastv {

// a hidden row that enters a stage; nothing of it is owned
struct ubatch_row {
    llama_seq_id      seq_id;
    const llama_pos * pos;       // [n_pos]
    const float *     hidden;    // [n_embd]
    const float *     per_layer; // [n_per_layer]
    bool              output;
};

// A ubatch that owns its numbers; in `embd` the hidden rows come first, then what layers have beside them. equal_seqs: the rows
// are of one sequence, and llama.cpp is told so, as recurrent layers want it.
llama_ubatch make_ubatch(const std::vector<ubatch_row> & rows, uint32_t n_pos, const row_width & width, bool equal_seqs);

// F32 [n_tokens, n_per_layer] of such a ubatch
const float * per_layer_of(const llama_ubatch & ubatch, int64_t n_embd);

// of row i of a ubatch that was split off a batch
int32_t batch_index(const llama_ubatch & ubatch, uint32_t i);

} // namespace pyfastv
