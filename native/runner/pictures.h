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

// How many rows of it, from `first` on, are decoded at once: those of a ubatch, or all where the model reads it at once.
size_t n_rows_at_once(const mtmd_context * vision, const llama_context * ctx, const prompt_piece & piece, size_t first);

// Rows [first, first + n) of it, in a sequence from n_past on, of which all together go to piece.n_pos positions. Returns
// llama_decode()'s result; after an error these rows are not in the context.
int32_t decode_picture(llama_context * ctx, mtmd_context * vision, const prompt_piece & piece, const visual_rows & rows,
        llama_pos n_past, llama_seq_id seq_id, size_t first, size_t n);

} // namespace pyfastv
