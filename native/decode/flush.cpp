// staged_decode: the choice, and the later layers

#include "decode/scopes.h"
#include "decode/staged_decode.h"

#include "choose/choose.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"

#include "ggml-backend.h"
#include "ggml.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace pyfastv {

static pyfastv_status to_status(ggml_status status) {
    switch (status) {
        case GGML_STATUS_SUCCESS:      return PYFASTV_OK;
        case GGML_STATUS_ABORTED:      return PYFASTV_ABORTED;
        case GGML_STATUS_ALLOC_FAILED: return PYFASTV_OUT_OF_MEMORY;
        case GGML_STATUS_FAILED:       return PYFASTV_FAILED;
    }
    return PYFASTV_FAILED;
}

std::vector<float> staged_decode::cell_scores() const {
    const auto & rows = memory.pending.all();

    std::vector<float> res;

    // cells come to exist as rows are decoded: an earlier row has paid nothing to later ones
    const auto add = [&](const pending_row & row, bool max) {
        res.resize(std::max(res.size(), row.scores.size()), 0.0f);
        for (size_t i = 0; i < row.scores.size(); ++i) {
            res[i] = max ? std::max(res[i], row.scores[i]) : res[i] + row.scores[i];
        }
    };

    if (params.score != PYFASTV_SCORE_LAST) {
        size_t n = 0;
        for (size_t i = rows.size(); i > 0 && !rows[i - 1].visual(); --i) {
            add(rows[i - 1], params.score == PYFASTV_SCORE_QUESTION_MAX);
            n++;
        }
        if (n > 0) {
            if (params.score == PYFASTV_SCORE_QUESTION_MEAN) {
                std::for_each(res.begin(), res.end(), [n](float & score) { score /= n; });
            }
            return res;
        }
    }

    // the last row; or, if rows behind it were removed again, the last one that was read
    for (size_t i = rows.size(); i > 0 && res.empty(); --i) {
        add(rows[i - 1], true);
    }

    return res;
}

std::vector<size_t> staged_decode::choose() {
    const timer time(counts.t_choose_ms);

    const auto & rows   = memory.pending.all();
    const auto   scores = cell_scores();

    last_kept.clear();
    last_scores.clear();

    std::vector<size_t> chosen;
    chosen.reserve(rows.size());

    for (size_t i = 0; i < rows.size(); ) {
        if (!rows[i].visual()) {
            chosen.push_back(i++);
            continue;
        }

        // one picture
        const size_t i0     = i;
        const size_t offset = last_scores.size();

        for (; i < rows.size() && rows[i].span == rows[i0].span; ++i) {
            last_scores.push_back(rows[i].cell < scores.size() ? scores[rows[i].cell] : 0.0f);
        }

        auto kept = pyfastv::choose(last_scores.data() + offset, i - i0, params.drop, params.pick, params.window);

        // somebody will read the logits of these, whatever their scores
        for (size_t j = i0; j < i; ++j) {
            if (rows[j].output >= 0 && !std::binary_search(kept.begin(), kept.end(), j - i0)) {
                kept.insert(std::lower_bound(kept.begin(), kept.end(), j - i0), j - i0);
            }
        }

        for (const int32_t k : kept) {
            chosen.push_back(i0 + k);
            last_kept.push_back(offset + k);
        }
    }

    return chosen;
}

std::vector<llama_ubatch> staged_decode::make_ubatches(const std::vector<size_t> & chosen) const {
    const auto & pending = memory.pending;

    // Rows run in ubatches as large as they may be, but
    // - a picture decoded non-causally sees itself, and nothing else of its ubatch;
    // - ggml's kernels round by the number of rows: with nothing dropped, the ubatches stay those of stage 0, so that
    //   the result is stock llama.cpp's to the bit.
    const auto together = [&](const pending_row & a, const pending_row & b) {
        return a.ubatch == b.ubatch || (params.drop > 0.0f && a.causal && b.causal);
    };

    std::vector<llama_ubatch> ubatches;

    for (size_t i0 = 0; i0 < chosen.size(); ) {
        size_t i1 = i0 + 1;
        while (i1 < chosen.size() && i1 - i0 < ctx.cparams.n_ubatch && together(pending[chosen[i0]], pending[chosen[i1]])) {
            i1++;
        }

        const auto n = (uint32_t) (i1 - i0);

        auto data = std::make_shared<llama_ubatch::data_t>();

        data->pos.resize(n);
        data->output.resize(n);
        data->embd.reserve(n*pending.n_embd);
        data->n_seq_id.assign(n, 1);
        data->seq_id_data.assign(n, 0);
        data->seq_id_unq.assign(1, 0);
        data->seq_idx.assign(LLAMA_MAX_SEQ, -1);
        data->seq_idx[0] = 0;

        for (uint32_t i = 0; i < n; ++i) {
            const size_t row = chosen[i0 + i];

            data->pos[i]    = pending[row].pos;
            data->output[i] = pending[row].output >= 0;
            data->embd.insert(data->embd.end(), pending.hidden(row), pending.hidden(row) + pending.n_embd);
            data->seq_id.push_back(&data->seq_id_data[i]);
            data->batch_idxs.push_back(row);
        }

        llama_ubatch ubatch = {
            /*.b_equal_seqs =*/ false,
            /*.n_tokens     =*/ n,
            /*.n_seq_tokens =*/ 1,
            /*.n_seqs       =*/ n,
            /*.n_seqs_unq   =*/ 1,
            /*.n_pos        =*/ 1,
            /*.token        =*/ nullptr,
            /*.embd         =*/ data->embd.data(),
            /*.pos          =*/ data->pos.data(),
            /*.n_seq_id     =*/ data->n_seq_id.data(),
            /*.seq_id       =*/ data->seq_id.data(),
            /*.seq_id_unq   =*/ data->seq_id_unq.data(),
            /*.seq_idx      =*/ data->seq_idx.data(),
            /*.output       =*/ data->output.data(),
            /*.data         =*/ data,
        };
        ubatches.push_back(std::move(ubatch));

        i0 = i1;
    }

    return ubatches;
}

void staged_decode::flush_if_read() {
    if (n_outputs == 0 || memory.pending.empty()) {
        return;
    }

    auto status = PYFASTV_FAILED;
    try {
        status = flush();
    } catch (const std::exception & err) {
        LLAMA_LOG_ERROR("%s: %s\n", __func__, err.what());
    }

    if (status != PYFASTV_OK) {
        // stock's readers return null for outputs that are not there
        LLAMA_LOG_ERROR("%s: the later layers could not be run; the outputs of this batch cannot be read\n", __func__);
        std::fill_n(ctx.logits.data, ctx.logits.size, std::numeric_limits<float>::quiet_NaN());
    }
}

pyfastv_status staged_decode::flush() {
    const auto & pending = memory.pending;

    if (pending.empty()) {
        return PYFASTV_OK;
    }

    // positions may have been shifted since the rows were decoded
    ctx.memory_update(false);

    const auto chosen = choose();

    const timer   time(counts.t_later_ms);
    const int64_t t0 = ggml_time_us();

    const auto ubatches = make_ubatches(chosen);

    llama_kv_cache::slot_info_vec_t sinfos;

    auto mctx = memory.init_stage(1, ubatches, sinfos);
    if (!mctx) {
        LLAMA_LOG_ERROR("%s: no room in the KV cache of the later layers for %zu tokens\n", __func__, chosen.size());
        return PYFASTV_FAILED;
    }

    const int64_t n_vocab = ctx.model.vocab.n_tokens();

    int32_t n_read = 0;

    for (const auto & ubatch : ubatches) {
        const auto n_out = (int32_t) std::count(ubatch.output, ubatch.output + ubatch.n_tokens, 1);

        const scoped_value<bool>     causal(ctx.cparams.causal_attn, pending[ubatch.data->batch_idxs[0]].causal);
        const scoped_value<uint32_t> outputs(ctx.n_outputs, n_out);

        llm_graph_result * res = nullptr;

        const auto status = run({ params.k, stage::all }, ubatch, *mctx, res);
        if (status != GGML_STATUS_SUCCESS) {
            // of the later layers only: the rows stay pending, so that the call can be repeated
            memory.kv(1).seq_rm(0, pending[0].pos, -1);
            return to_status(status);
        }

        if (n_out > 0) {
            ggml_backend_tensor_get(res->get_logits(), ctx.logits.data + n_read*n_vocab, 0, n_out*n_vocab*sizeof(float));
        }
        n_read += n_out;

        mctx->next();
    }

    std::fill(ctx.output_ids.begin(), ctx.output_ids.end(), -1);
    ctx.n_outputs = 0;
    for (const auto & row : pending.all()) {
        if (row.output >= 0) {
            ctx.output_ids[row.output] = ctx.n_outputs++;
        }
    }

    counts.n_visual_kept += last_kept.size();
    n_outputs = 0;
    memory.pending.clear();

    // the tokens were counted by llama_decode()
    ctx.t_p_eval_us += ggml_time_us() - t0;

    return PYFASTV_OK;
}

} // namespace pyfastv
