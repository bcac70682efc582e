#pragma once

#include "choose/choose.h"
#include "runner/prompt.h"

#include "llama.h"
#include "mtmd.h"

#include <cstdint>
#include <vector>

namespace pyfastv {

// What of a picture, or of a slice of one, enters the language model.
struct visual_rows {
    const std::vector<float> &   values; // F32 [n_tokens, n_embd_inp]
    const std::vector<int32_t> & places; // [n_tokens] the patch whose position a token has; empty: each its own
    patch_grid                   shape;  // what they form; used where something was merged or reduced
};

// A picture that the model reads at once has to fit into a ubatch. Throws error(option).
void check_fits_ubatch(const mtmd_context * vision, const llama_context * ctx, const prompt_piece & piece);

// Rows of a sequence from n_past on, which go to piece.n_pos positions. Returns llama_decode()'s result; after an error some
// of the rows may be in the context.
int32_t decode_picture(llama_context * ctx, mtmd_context * vision, const prompt_piece & piece, const visual_rows & rows,
        llama_pos n_past, llama_seq_id seq_id);

} // namespace pyfastv
