#pragma once

#include "pyfastv_turbo.h"

#include "ggml.h"

#include <cstdint>
#include <vector>

struct mtmd_context;

namespace pyfastv {

// One bipartite step as it was built into the last graph; of a picture of one encoder run. I32 tensors.
struct turbo_step {
    int32_t       n_in;     // tokens before it, CLS included
    ggml_tensor * ranked;   // (evens) the evens by score, the best first
    ggml_tensor * partners; // (evens) the odd that each even would be merged into
    ggml_tensor * order;    // (n_in) the tokens by place, the merged last
    int32_t       n_merged;
};

// What an encoder that merges knows; owned by its clip_ctx.
struct turbo {
    pyfastv_turbo_params params;

    int32_t n_blocks; // that run
    bool    cls;      // is there a row beside the patches?
    bool    cls_last = false;
    bool    restore  = false; // every patch has a row again behind the blocks

    // of the last graph
    std::vector<turbo_step> steps;
    ggml_tensor *           in_place  = nullptr; // F32 [1, n_in]: CLS -1 (or, the last, their number), patches 0, 1, ...
    ggml_tensor *           in_size   = nullptr; // F32 [1, n_in]: 1
    ggml_tensor *           in_token  = nullptr; // I32 [1, n_in]: 0, 1, ...
    ggml_tensor *           out_place = nullptr; // F32 [1, n_out]

    // of the last picture, without CLS
    std::vector<int32_t> places;  // (n_out)
    std::vector<int32_t> sizes;   // (n_out)
    std::vector<int32_t> targets; // (n_in)

    // Of the n tokens that the encoder makes of a picture without Turbo, those that are left. Throws std::invalid_argument.
    int32_t count(int32_t n) const;

    int32_t first_patch() const { return cls && !cls_last; } // its row

    void forget(); // the last picture

    void set_inputs() const;

    // Throws std::runtime_error if the graph was not computed: what it left then points outside the picture.
    void read_outputs();
};

// the positions of a picture whose tokens are fewer than its positions; false, and a line in the log, if they are not known
bool turbo_positions(const mtmd_context * ctx, int32_t n_tokens, int32_t first, int32_t * positions);

} // namespace pyfastv
