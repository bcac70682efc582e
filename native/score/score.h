#pragma once

struct ggml_tensor;
struct llm_graph_context;

namespace pyfastv {

// name of the output of add_scores(): F32 [1, n_kv, n_rows], one score for each KV cell
constexpr const char * scores_name = "pyfastv_scores";

// Beside the attention of the last layer of a stage that ends early: how much attention the last row of the ubatch, or
// every row (stage::scored), pays to every KV cell, softmax over the cells, mean over the heads. Flash attention,
// which never has these rows in memory, stays on for the attention itself.
// Called for every layer; adds nothing for the others.
//   q       [n_embd_head, n_tokens, n_head,    1]
//   k       [n_embd_head, n_kv,     n_head_kv, 1]
//   kq_mask [n_kv, n_tokens]
//   sinks   [n_head] or null
// stage::no_rope: the keys in the cache have been rotated, so q and k are turned back first (FEATHER, arXiv 2412.13180,
// section 4). Throws unsupported where that cannot be done: M-RoPE, and quantized keys.
void add_scores(const llm_graph_context & graph, ggml_tensor * q, ggml_tensor * k, ggml_tensor * kq_b,
        ggml_tensor * kq_mask, ggml_tensor * sinks, float kq_scale, int il);

} // namespace pyfastv
