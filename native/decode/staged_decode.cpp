// staged_decode: stage 0

#include "decode/staged_decode.h"

#include "decode/scopes.h"
#include "graph/stage_graph.h"
#include "score/score.h"

#include "llama-batch.h"
#include "llama-context.h"
#include "llama-impl.h"

#include "ggml-backend.h"
#include "ggml.h"

#include <algorithm>
#include <exception>
#include <utility>

namespace pyfastv {

static int to_decode_result(ggml_status status) {
    switch (status) {
        case GGML_STATUS_SUCCESS:      return  0;
        case GGML_STATUS_ABORTED:      return  2;
        case GGML_STATUS_ALLOC_FAILED: return -2;
        case GGML_STATUS_FAILED:       return -3;
    }
    return -3;
}

bool staged_decode::takes(const llama_batch_allocr & balloc) const {
    const auto & batch = balloc.get_batch();

    return !memory.pending.empty() || (batch.embd && !batch.token && media == PYFASTV_MEDIA_IMAGE);
}

int staged_decode::decode(llama_batch_allocr & balloc) {
    try {
        return run_stage0(balloc);
    } catch (const std::exception & err) {
        LLAMA_LOG_ERROR("%s: %s\n", __func__, err.what());
        return -2;
    }
}

int staged_decode::run_stage0(llama_batch_allocr & balloc) {
    if (const char * reason = unsupported_output(ctx)) {
        LLAMA_LOG_ERROR("%s: %s\n", __func__, reason);
        return -1;
    }

    const bool visual = balloc.get_batch().embd && media == PYFASTV_MEDIA_IMAGE;

    auto & pending = memory.pending;

    pending.forget_outputs();
    n_outputs = 0;

    balloc.split_reset();

    std::vector<llama_ubatch>         ubatches;
    std::vector<std::vector<int8_t>>  outputs; // of every ubatch

    for (auto ubatch = balloc.split_simple(ctx.cparams.n_ubatch); ubatch.n_tokens > 0; ubatch = balloc.split_simple(ctx.cparams.n_ubatch)) {
        outputs.emplace_back(ubatch.output, ubatch.output + ubatch.n_tokens);
        // stage 0 has no outputs
        std::fill_n(ubatch.output, ubatch.n_tokens, 0);
        ubatches.push_back(std::move(ubatch));
    }

    // Reading must not fail later. The later stage has room if stage 0 has: every token in it is in stage 0 too.
    llama_kv_cache::slot_info_vec_t sinfos;

    auto mctx = memory.init_stage(0, ubatches, sinfos);
    if (!mctx) {
        LLAMA_LOG_WARN("%s: no room in the KV cache for %u tokens\n", __func__, balloc.get_n_tokens());
        return 1;
    }

    const uint32_t n_outputs_all = balloc.get_n_outputs();

    if (ctx.output_reserve(n_outputs_all) < n_outputs_all) {
        LLAMA_LOG_ERROR("%s: could not reserve space for batch with %u outputs\n", __func__, n_outputs_all);
        return -2;
    }

    pending.reserve(balloc.get_n_tokens());

    const bool score_all_rows = !visual && params.score != PYFASTV_SCORE_LAST;

    const timer time(counts.t_stage0_ms);

    if (!visual) {
        new_span = true;
    }

    for (size_t u = 0; u < ubatches.size(); ++u) {
        const auto & ubatch = ubatches[u];

        llm_graph_result * res = nullptr;

        const auto status = run({ 0, params.k, score_all_rows }, ubatch, *mctx, res);
        if (status != GGML_STATUS_SUCCESS) {
            const llama_pos p0 = *std::min_element(ubatch.pos, ubatch.pos + ubatch.n_tokens);

            LLAMA_LOG_WARN("%s: removing memory module entries for pos = [%d, +inf)\n", __func__, p0);
            memory.seq_rm(0, p0, -1);

            return to_decode_result(status);
        }

        read_rows(*res, ubatch, outputs[u], sinfos[u], visual);

        mctx->next();
    }

    counts.n_visual += visual ? balloc.get_n_tokens() : 0;
    n_outputs = n_outputs_all;

    return 0;
}

void staged_decode::read_rows(llm_graph_result & res, const llama_ubatch & ubatch, const std::vector<int8_t> & outputs,
        const llama_kv_cache::slot_info & sinfo, bool visual) {
    const ggml_tensor * t_rows   = ggml_graph_get_tensor(res.get_gf(), rows_name);
    const ggml_tensor * t_scores = ggml_graph_get_tensor(res.get_gf(), scores_name);

    n_ubatches++;
    if (visual && new_span) {
        new_span = false;
        n_spans++;
    }

    // of the last rows of the ubatch
    const int64_t n_kv = t_scores->ne[1], n_scored = t_scores->ne[2];

    std::vector<float> scores(n_kv*n_scored);
    ggml_backend_tensor_get(t_scores, scores.data(), 0, ggml_nbytes(t_scores));

    std::vector<pending_row> added(ubatch.n_tokens);

    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        auto & row = added[i];

        row.pos    = ubatch.pos[i];
        row.cell   = sinfo.idxs[0][i];
        row.ubatch = n_ubatches;
        row.span   = visual ? n_spans : -1;
        row.output = outputs[i] ? ubatch.data->batch_idxs[i] : -1;
        row.causal = ctx.cparams.causal_attn;

        const int64_t scored = n_scored - ubatch.n_tokens + i;
        if (scored >= 0) {
            row.scores.assign(scores.begin() + scored*n_kv, scores.begin() + (scored + 1)*n_kv);
        }
    }
    ggml_backend_tensor_get(t_rows, memory.pending.append(std::move(added)), 0, ggml_nbytes(t_rows));
}

ggml_status staged_decode::run(stage layers, const llama_ubatch & ubatch, llama_memory_context_i & mctx, llm_graph_result *& res) {
    const scoped_value<stage> scope(ctx.cparams.stage, layers);

    ggml_status status = GGML_STATUS_FAILED;

    res = ctx.process_ubatch(ubatch, LLM_GRAPH_TYPE_DEFAULT, &mctx, status);
    ggml_backend_sched_synchronize(ctx.sched.get());

    return status;
}

void staged_decode::set_media(pyfastv_media media) {
    this->media = media;
    new_span = true;
}

pyfastv_report staged_decode::report() const {
    auto res = counts;

    res.k         = params.k;
    res.drop      = params.drop;
    res.n_pending = memory.pending.size();
    res.n_stages  = n_stages;

    for (int s = 0; s < n_stages; ++s) {
        res.kv_cell_bytes[s] = cell_bytes(memory.kv(s));
        res.kv_cells_used[s] = memory.kv(s).get_cells(0).get_used();
        res.kv_cells_size[s] = memory.kv(s).get_size();
    }

    return res;
}

void staged_decode::reset_report() {
    counts = {};
}

} // namespace pyfastv
