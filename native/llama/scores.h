#pragma once

#include <cstdint>
#include <vector>

struct ggml_cgraph;
struct ggml_tensor;
struct llm_graph_context;

namespace pyfastv {

// Beside the attention of the last layer of a stage that ends early: how much attention the last rows of the ubatch
// (stage::n_scored, n_scored_no_rope) pay to every KV cell, softmax over the cells, mean over the heads. Flash attention,
// which never has these rows in memory, stays on for the attention itself.
// Called for every layer; adds nothing for the others.
//   q       [n_embd_head, n_tokens, n_head,    1]
//   k       [n_embd_head, n_kv,     n_head_kv, 1]
//   kq_mask [n_kv, n_tokens]
//   sinks   [n_head] or null
// n_scored_no_rope: the keys in the cache have been rotated, so q and k are turned back first (FEATHER, arXiv 2412.13180,
// section 4). Throws unsupported where that cannot be done: M-RoPE, and quantized keys.
void add_scores(const llm_graph_context & graph, ggml_tensor * q, ggml_tensor * k, ggml_tensor * kq_b,
        ggml_tensor * kq_mask, ggml_tensor * sinks, float kq_scale, int il);

// What add_scores() left in a graph of either kind: blocks of rows, in order, each F32 [n_kv, rows of the block]. Empty: nothing.
std::vector<const ggml_tensor *> scores_in(ggml_cgraph * gf, bool no_rope);

} // namespace pyfastv
