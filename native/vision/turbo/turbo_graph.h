#pragma once

#include "ggml.h"

#include <cstdint>
#include <map>
#include <vector>

namespace pyfastv {

struct turbo;

// The nodes that Turbo adds to an encoder's graph, block by block: on_attention(), and maybe on_softmax(), before
// merge(); where rows leave the blocks, restored(). Only operators that ggml's CPU, CUDA and Metal backends have. Token counts
// are those of merging_steps(); n is the number of tokens that are left, CLS, which is the first or the last, included.
class turbo_graph {
public:
    turbo_graph(turbo & state, ggml_context * ctx0, ggml_cgraph * gf, int32_t n_patches);

    // Before the first block, where attention of some blocks is in windows of side x side units, of nx x ny: tokens are merged
    // inside of one. of_windows: those blocks' mask, F32 [n, n], the rows of a window one after another.
    void stay_in(ggml_tensor * of_windows, int32_t nx, int32_t ny, int32_t side);

    // The tokens' own of what every patch has, I32 [k*n_patches], one k after another (positions): of their places.
    ggml_tensor * at_places(ggml_tensor * t);

    // q, k: [d_head, n_head, n]; mask: the block's own, that of stay_in() or null. Returns the mask that it has to take, [n, n]:
    // the same as long as nothing was merged, then with log(size) for every key
    ggml_tensor * on_attention(ggml_tensor * q, ggml_tensor * k, ggml_tensor * mask, float scale, int il);

    // behind on_attention(): has this block to compute its softmax explicitly, for on_softmax()?
    bool needs_softmax(int il) const;

    // kq: [n, n, n_head], keys first
    void on_softmax(ggml_tensor * kq, int il);

    // x: [n_embd, n], a fresh node; returns [n_embd, n_left]
    ggml_tensor * merge(ggml_tensor * x, int il);

    // x: [n_embd, n]; returns [n_embd, n_in], for every patch, and CLS, the row of its token: where the encoder restores, else x
    ggml_tensor * restored(ggml_tensor * x) const;

private:
    bool merges(int il) const { return il >= 0 && il < (int) steps.size() && !steps[il].empty(); }

    ggml_tensor * mask(ggml_tensor * given);
    ggml_tensor * step(ggml_tensor * x, int32_t r);
    ggml_tensor * mean_attention(ggml_tensor * kq) const;
    void          follow(ggml_tensor * order, ggml_tensor * src, ggml_tensor * dst);

    ggml_tensor * log_size(); // F32 [1, n]
    ggml_tensor * mean_key(ggml_tensor * k) const;
    ggml_tensor * apart(ggml_tensor * a, ggml_tensor * b) const; // of windows, element by element or b a row: 0 if they are one, else 1
    ggml_tensor * cast(ggml_tensor * t, ggml_type type) const { return ggml_cast(ctx0, t, type); } // of whole numbers
    ggml_tensor * evens(ggml_tensor * t) const { return every_second(t, 0); }
    ggml_tensor * odds (ggml_tensor * t) const { return every_second(t, 1); }
    ggml_tensor * every_second(ggml_tensor * t, int32_t parity) const;
    ggml_tensor * repeat_rows(ggml_tensor * row, int64_t n_rows) const;

    turbo &        state;
    ggml_context * ctx0;
    ggml_cgraph *  gf;

    std::vector<std::vector<int32_t>> steps;

    const int32_t n_patches;
    int32_t       n; // tokens that are left
    bool          merged = false;

    ggml_tensor * size;  // F32 [1, n]
    ggml_tensor * place; // F32 [1, n]
    ggml_tensor * window = nullptr; // F32 [1, n]: a number of each token's window; null: there are none
    ggml_tensor * target = nullptr; // I32 [n_in]: the token of each patch, and of CLS; null: its own, or nobody asks

    // since the last merge: mask() of blocks without and with windows, at_places()
    ggml_tensor * masked           = nullptr;
    ggml_tensor * masked_in_window = nullptr;
    std::map<ggml_tensor *, ggml_tensor *> placed;

    // of this block
    ggml_tensor * key   = nullptr; // F32 [d_head, n]
    ggml_tensor * value = nullptr; // F32 [1, n]: A; null if alpha is 0
};

} // namespace pyfastv
