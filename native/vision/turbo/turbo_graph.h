#pragma once

#include "ggml.h"

#include <cstdint>
#include <vector>

namespace pyfastv {

struct turbo;

// The nodes that Turbo adds to an encoder's graph, block by block: mask() and on_attention() (or on_softmax()) before
// merge(). Only operators that ggml's CPU, CUDA and Metal backends have. Token counts are those of merging_steps(); n is the
// number of tokens that are left, CLS, which is the first, included.
class turbo_graph {
public:
    turbo_graph(turbo & state, ggml_context * ctx0, ggml_cgraph * gf, int32_t n_patches);

    // Has this block to compute its softmax explicitly, for on_softmax()?
    bool needs_softmax(int il) const;

    // F32 [n, n]: log(size) for every key; null as long as nothing was merged
    ggml_tensor * mask();

    // q, k: [d_head, n_head, n]
    void on_attention(ggml_tensor * q, ggml_tensor * k, float scale, int il);

    // kq: [n, n, n_head], keys first
    void on_softmax(ggml_tensor * kq, int il);

    // x: [n_embd, n], a fresh node; returns [n_embd, n_left]
    ggml_tensor * merge(ggml_tensor * x, int il);

private:
    bool merges(int il) const { return il >= 0 && il < (int) steps.size() && !steps[il].empty(); }

    ggml_tensor * step(ggml_tensor * x, int32_t r);

    ggml_tensor * log_size(); // F32 [1, n]
    ggml_tensor * mean_key(ggml_tensor * k) const;
    ggml_tensor * evens(ggml_tensor * t) const { return every_second(t, 0); }
    ggml_tensor * odds (ggml_tensor * t) const { return every_second(t, 1); }
    ggml_tensor * every_second(ggml_tensor * t, int32_t parity) const;
    ggml_tensor * repeat_rows(ggml_tensor * row, int64_t n_rows) const;

    turbo &        state;
    ggml_context * ctx0;
    ggml_cgraph *  gf;

    const std::vector<std::vector<int32_t>> steps;

    int32_t       n; // tokens that are left
    bool          merged = false;

    ggml_tensor * size;  // F32 [1, n]
    ggml_tensor * place; // F32 [1, n]
    ggml_tensor * masked = nullptr; // mask() since the last merge

    // of this block
    ggml_tensor * key   = nullptr; // F32 [d_head, n]
    ggml_tensor * value = nullptr; // F32 [1, n]: A; null if alpha is 0
};

} // namespace pyfastv
