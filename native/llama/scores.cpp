#include "llama/scores.h"

#include "llama/stage_graph.h"
#include "llama/call_sites.h"
#include "stages/staged_memory.h"
#include "llama/supported.h"

#include "llama-cparams.h"
#include "llama-graph.h"
#include "llama-model.h"

#include "ggml-backend.h"
#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

namespace pyfastv {
namespace {

// Rows are scored in blocks, one after another in the same memory: [n_kv, rows, n_head] of a whole ubatch may be gigabytes.
constexpr int64_t min_rows_in_block = 32; // fewer make the products slower
constexpr int64_t max_blocks        = 16; // of a kind; each has nodes of its own

const char * scores_name(bool no_rope) { return no_rope ? "pyfastv_scores_no_rope" : "pyfastv_scores"; }

// how far to turn back: minus the positions of the cells, and of the last rows of the ubatch
class graph_input_turn_back : public llm_graph_input_i {
public:
    graph_input_turn_back(const stage_cache & cache, ggml_tensor * cells, ggml_tensor * rows) : cache(cache), cells(cells), rows(rows) {}

    void set_input(const llama_ubatch * ubatch) override {
        auto of_cells = cache.positions(cells->ne[0]);
        for (auto & pos : of_cells) {
            pos = -pos;
        }
        ggml_backend_tensor_set(cells, of_cells.data(), 0, ggml_nbytes(cells));

        std::vector<int32_t> of_rows(rows->ne[0]);
        for (size_t i = 0; i < of_rows.size(); ++i) {
            of_rows[i] = -ubatch->pos[ubatch->n_tokens - of_rows.size() + i];
        }
        ggml_backend_tensor_set(rows, of_rows.data(), 0, ggml_nbytes(rows));
    }

private:
    const stage_cache & cache;

    ggml_tensor * cells; // I32 [n_kv]
    ggml_tensor * rows;  // I32 [n_rows]
};

// x [n_embd_head, n, n_head] of any type and layout -> the same in F32, turned by `by` [n]
ggml_tensor * turned(const llm_graph_context & graph, ggml_tensor * x, ggml_tensor * by, int il) {
    ggml_context * ctx = graph.ctx0;

    const auto & model = model_of_graph();

    // YaRN's scaling of the attention is in q and k already
    const float attn_factor = graph.ext_factor == 0.0f ? 1.0f : 1.0f/(1.0f + 0.1f*std::log(1.0f/graph.freq_scale));

    x = ggml_cast(ctx, ggml_permute(ctx, x, 0, 2, 1, 3), GGML_TYPE_F32); // [n_embd_head, n_head, n]
    x = ggml_rope_ext(ctx, x, by, model.get_rope_factors(graph.cparams, il), graph.n_rot, graph.rope_type, graph.n_ctx_orig,
            model.get_rope_freq_base(graph.cparams, il), model.get_rope_freq_scale(graph.cparams, il),
            graph.ext_factor, attn_factor, graph.beta_fast, graph.beta_slow);

    return ggml_permute(ctx, x, 0, 2, 1, 3);
}

ggml_tensor * new_input(const llm_graph_context & graph, int64_t n) {
    ggml_tensor * t = ggml_new_tensor_1d(graph.ctx0, GGML_TYPE_I32, n);
    ggml_set_input(t);
    return t;
}

// since they left their matrix? Some layers do without (NoPE), and no parameter says for all models which.
bool is_rotated(const ggml_tensor * q) {
    if (!q || q->op == GGML_OP_MUL_MAT) {
        return false;
    }
    return q->op == GGML_OP_ROPE || std::any_of(std::begin(q->src), std::end(q->src), is_rotated);
}

void turn_back(const llm_graph_context & graph, ggml_tensor *& q, ggml_tensor *& k, int il) {
    if (graph.rope_type == LLAMA_ROPE_TYPE_NONE || !graph.hparams.has_rope(il)) {
        return;
    }
    if (graph.rope_type == LLAMA_ROPE_TYPE_MROPE || graph.rope_type == LLAMA_ROPE_TYPE_IMROPE) {
        throw unsupported("score = last-no-rope does not know M-RoPE");
    }
    if (ggml_is_quantized(k->type)) {
        throw unsupported("score = last-no-rope cannot turn back the keys of a quantized KV cache");
    }
    if (!is_rotated(q)) {
        return;
    }

    ggml_tensor * cells = new_input(graph, k->ne[1]);
    ggml_tensor * rows  = new_input(graph, q->ne[1]);

    const auto * mctx = staged_memory_context::from(graph.mctx);

    graph.res->add_input(std::make_unique<graph_input_turn_back>(mctx->stages().cache(mctx->stage_of(il)), cells, rows));

    q = turned(graph, q, rows, il);
    k = turned(graph, k, cells, il);
}

// [n_kv, n_rows, n_head] -> [n_kv, n_rows, 1] sum over the heads, in place: half of them are added to the other half,
// which takes no memory but theirs
ggml_tensor * sum_of_heads(ggml_context * ctx, ggml_tensor * p) {
    const auto heads = [&](int64_t first, int64_t n) {
        return ggml_view_3d(ctx, p, p->ne[0], p->ne[1], n, p->nb[1], p->nb[2], first*p->nb[2]);
    };

    std::vector<ggml_tensor *> odd;
    while (p->ne[2] > 1) {
        const int64_t half = p->ne[2]/2;
        if (p->ne[2] % 2 == 1) {
            odd.push_back(heads(2*half, 1));
        }
        p = ggml_add_inplace(ctx, heads(0, half), heads(half, half));
    }
    for (ggml_tensor * head : odd) {
        p = ggml_add_inplace(ctx, p, head);
    }
    return p;
}

ggml_tensor * rows_of(ggml_context * ctx, ggml_tensor * x, int64_t first, int64_t n) {
    return ggml_view_4d(ctx, x, x->ne[0], n, x->ne[2], x->ne[3], x->nb[1], x->nb[2], x->nb[3], first*x->nb[1]);
}

} // namespace

uint32_t max_score_nodes() { return 2048; }

std::vector<const ggml_tensor *> scores_in(ggml_cgraph * gf, bool no_rope) {
    std::vector<const ggml_tensor *> res;
    while (const auto * block = ggml_graph_get_tensor(gf, (scores_name(no_rope) + std::to_string(res.size())).c_str())) {
        res.push_back(block);
    }
    return res;
}

// of the last n_scored rows
static void add_scores_of(const llm_graph_context & graph, ggml_tensor * q, ggml_tensor * k, ggml_tensor * kq_mask, ggml_tensor * sinks,
        float kq_scale, int il, int32_t n_scored, bool no_rope) {
    if (n_scored == 0) {
        return;
    }
    ggml_context * ctx = graph.ctx0;

    const int64_t n_tokens = q->ne[1];
    const int64_t n_rows   = std::min<int64_t>(n_scored, n_tokens);
    const int64_t n_block  = std::max(min_rows_in_block, (n_rows + max_blocks - 1)/max_blocks);

    q = rows_of(ctx, q, n_tokens - n_rows, n_rows);
    if (no_rope) {
        turn_back(graph, q, k, il);
    }

    int n_blocks = 0;
    for (int64_t first = 0; first < n_rows; first += n_block) {
        const int64_t n = std::min(n_block, n_rows - first);

        ggml_tensor * p = ggml_mul_mat(ctx, k, rows_of(ctx, q, first, n)); // [n_kv, n, n_head]
        ggml_prec_set_acc(p, GGML_PREC_F32);

        if (graph.hparams.attn_soft_cap) {
            const float cap = graph.hparams.f_attn_logit_softcapping;
            p = ggml_scale(ctx, ggml_tanh(ctx, ggml_scale(ctx, p, 1.0f/cap)), cap);
        }

        p = ggml_soft_max_ext(ctx, p, rows_of(ctx, kq_mask, n_tokens - n_rows + first, n), kq_scale, graph.hparams.f_max_alibi_bias);
        ggml_soft_max_add_sinks(p, sinks);

        p = ggml_scale(ctx, sum_of_heads(ctx, p), 1.0f/p->ne[2]); // [n_kv, n]

        ggml_format_name(p, "%s%d", scores_name(no_rope), n_blocks++);
        ggml_set_output(p);
        ggml_build_forward_expand(graph.gf, p);
    }
}

void add_scores(const llm_graph_context & graph, ggml_tensor * q, ggml_tensor * k, ggml_tensor * kq_b,
        ggml_tensor * kq_mask, ggml_tensor * sinks, float kq_scale, int il) {
    const auto & stage = graph.cparams.stage;

    if (!stage.ends_early() || il != stage.il1 - 1 || (stage.n_scored == 0 && stage.n_scored_no_rope == 0)) {
        return;
    }
    if (kq_b) {
        throw unsupported("its attention has a bias that the scores do not follow");
    }
    add_scores_of(graph, q, k, kq_mask, sinks, kq_scale, il, stage.n_scored,         false);
    add_scores_of(graph, q, k, kq_mask, sinks, kq_scale, il, stage.n_scored_no_rope, true);
}

} // namespace pyfastv
