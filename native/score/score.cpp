#include "score/score.h"

#include "schedule/schedule.h"

#include "llama-cparams.h"
#include "llama-graph.h"

#include "ggml.h"


namespace pyfastv {

void add_scores(const llm_graph_context & graph, ggml_tensor * q, ggml_tensor * k, ggml_tensor * kq_b,
        ggml_tensor * kq_mask, ggml_tensor * sinks, float kq_scale, int il) {
    const auto & stage = graph.cparams.stage;

    if (!stage.ends_early() || il != stage.il1 - 1) {
        return;
    }
    if (kq_b) {
        throw unsupported("its attention has a bias that the scores do not follow");
    }

    ggml_context * ctx = graph.ctx0;

    const int64_t n_rows = stage.score_all_rows ? q->ne[1] : 1;
    const int64_t first  = q->ne[1] - n_rows;

    ggml_tensor * q_rows    = ggml_view_4d(ctx, q, q->ne[0], n_rows, q->ne[2], q->ne[3], q->nb[1], q->nb[2], q->nb[3], first*q->nb[1]);
    ggml_tensor * mask_rows = ggml_view_2d(ctx, kq_mask, kq_mask->ne[0], n_rows, kq_mask->nb[1], first*kq_mask->nb[1]);

    ggml_tensor * p = ggml_mul_mat(ctx, k, q_rows); // [n_kv, n_rows, n_head]
    ggml_prec_set_acc(p, GGML_PREC_F32);

    if (graph.hparams.attn_soft_cap) {
        const float cap = graph.hparams.f_attn_logit_softcapping;
        p = ggml_scale(ctx, ggml_tanh(ctx, ggml_scale(ctx, p, 1.0f/cap)), cap);
    }

    p = ggml_soft_max_ext(ctx, p, mask_rows, kq_scale, graph.hparams.f_max_alibi_bias);
    ggml_soft_max_add_sinks(p, sinks);

    p = ggml_cont(ctx, ggml_permute(ctx, p, 1, 2, 0, 3)); // [n_head, n_kv, n_rows]
    p = ggml_mean(ctx, p);                                // [1, n_kv, n_rows]

    ggml_set_name(p, scores_name);
    ggml_set_output(p);
    ggml_build_forward_expand(graph.gf, p);
}

} // namespace pyfastv
