#include "decode/staged_decode.h"

#include "choose/choose.h"
#include "graph/stage.h"
#include "graph/stage_graph.h"
#include "schedule/schedule.h"
#include "score/score.h"

#include "llama-batch.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"

#include "ggml-backend.h"
#include "ggml.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <typeinfo>
#include <utility>

namespace pyfastv {
namespace {

// sets a value for as long as a scope lasts
template <typename T>
class scoped_value {
public:
    scoped_value(T & target, T value) : target(target), saved(target) { target = value; }
    ~scoped_value() { target = saved; }

    scoped_value(const scoped_value &) = delete;

private:
    T & target;
    T   saved;
};

class timer {
public:
    explicit timer(double & ms) : ms(ms), t0(ggml_time_us()) {}
    ~timer() { ms += (ggml_time_us() - t0)/1000.0; }

private:
    double & ms;
    int64_t  t0;
};

pyfastv_status to_status(ggml_status status) {
    switch (status) {
        case GGML_STATUS_SUCCESS:      return PYFASTV_OK;
        case GGML_STATUS_ABORTED:      return PYFASTV_ABORTED;
        case GGML_STATUS_ALLOC_FAILED: return PYFASTV_OUT_OF_MEMORY;
        case GGML_STATUS_FAILED:       return PYFASTV_FAILED;
    }
    return PYFASTV_FAILED;
}

int to_decode_result(ggml_status status) {
    switch (status) {
        case GGML_STATUS_SUCCESS:      return  0;
        case GGML_STATUS_ABORTED:      return  2;
        case GGML_STATUS_ALLOC_FAILED: return -2;
        case GGML_STATUS_FAILED:       return -3;
    }
    return -3;
}

} // namespace

staged_decode::staged_decode(llama_context & ctx, const pyfastv_params & params, staged_memory & memory) :
    ctx(ctx), params(params), memory(memory) {}

//
// attach and detach
//

staged_decode::cache_params staged_decode::types_of(llama_memory_i & memory) {
    auto * staged   = dynamic_cast<staged_memory *>(&memory);
    const auto & kv = staged ? staged->kv(0) : dynamic_cast<llama_kv_cache &>(memory);

    return { kv.type_k(), kv.type_v() };
}

kv_cache_ptr staged_decode::make_cache(const llama_context & ctx, cache_params types, int32_t il0, int32_t il1) {
    const auto & hparams = ctx.model.hparams;
    const auto & cparams = ctx.cparams;

    // as llama_model::create_memory() does for layers that only predict further tokens
    il1 = std::min<int32_t>(il1, hparams.n_layer());

    return std::make_unique<llama_kv_cache>(
            ctx.model, hparams, types.type_k, types.type_v,
            !cparams.flash_attn, cparams.offload_kqv, cparams.kv_unified,
            cparams.n_ctx_seq, cparams.n_seq_max, 1, hparams.n_swa, hparams.swa_type, nullptr,
            [il0, il1](int32_t il) { return il0 <= il && il < il1; }, nullptr, nullptr);
}

void staged_decode::attach(llama_context & ctx, const pyfastv_params & params) {
    validate(params, ctx.model.hparams.n_layer());

    if (ctx.fastv && ctx.fastv->params.k == params.k) {
        ctx.memory->clear(false);
        ctx.fastv.reset(new staged_decode(ctx, params, ctx.fastv->memory));
        return;
    }

    if (const char * reason = unsupported_reason(ctx.model)) {
        throw unsupported(reason);
    }
    if (!ctx.memory || (!ctx.fastv && typeid(*ctx.memory) != typeid(llama_kv_cache))) {
        throw unsupported("its memory is not a plain KV cache");
    }
    if (ctx.cparams.n_seq_max != 1) {
        throw unsupported("the context has n_seq_max = " + std::to_string(ctx.cparams.n_seq_max) + "; this version runs stages for one sequence only");
    }
    if (ctx.cparams.embeddings || !ctx.sampling.samplers.empty()) {
        throw unsupported("the context outputs embeddings or samples in its graph, which this version does not do in stages");
    }

    const auto types = types_of(*ctx.memory);

    // the old cache goes first: two at a time may not fit
    ctx.synchronize();
    ctx.fastv.reset();
    ctx.memory.reset();

    try {
        auto memory = std::make_unique<staged_memory>(params.k, std::array<kv_cache_ptr, n_stages> {
            make_cache(ctx, types, 0, params.k),
            make_cache(ctx, types, params.k, stage::all),
        }, ctx.model.hparams.n_embd);

        ctx.fastv.reset(new staged_decode(ctx, params, *memory));
        ctx.memory = std::move(memory);

        ctx.sched_need_reserve = true;
        ctx.sched_reserve();
    } catch (...) {
        make_plain(ctx, types);
        throw;
    }
}

void staged_decode::detach(llama_context & ctx) {
    if (!ctx.fastv) {
        return;
    }
    make_plain(ctx, types_of(*ctx.memory));
}

void staged_decode::make_plain(llama_context & ctx, cache_params types) {
    ctx.synchronize();
    ctx.fastv.reset();
    ctx.memory.reset();
    ctx.memory = make_cache(ctx, types, 0, stage::all);

    ctx.sched_need_reserve = true;
    ctx.sched_reserve();
}

void staged_decode::reserve() {
    const auto     mctx      = memory.init_full();
    const uint32_t n_tokens  = std::min(ctx.cparams.n_ctx, ctx.cparams.n_ubatch);
    const uint32_t n_outputs = std::min(n_tokens, ctx.cparams.n_outputs_max);

    for (const stage layers : { stage { 0, params.k }, stage { params.k, stage::all } }) {
        const scoped_value<stage> scope(ctx.cparams.stage, layers);

        if (!ctx.graph_reserve(n_tokens, 1, n_outputs, mctx.get())) {
            throw std::runtime_error("failed to allocate the compute buffers of a stage");
        }
    }

    // the context compares its buffers with this when it is freed
    for (size_t i = 0; i < ctx.backend_ptrs.size(); ++i) {
        ctx.backend_buf_exp_size[i] = ggml_backend_sched_get_buffer_size(ctx.sched.get(), ctx.backend_ptrs[i]);
    }
}

//
// decode
//

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
    if (ctx.cparams.embeddings || !ctx.sampling.samplers.empty()) {
        LLAMA_LOG_ERROR("%s: the context outputs embeddings or samples in its graph, which this version does not do in stages\n", __func__);
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

    const timer time(counts.t_stage0_ms);

    if (!visual) {
        new_span = true;
    }

    for (size_t u = 0; u < ubatches.size(); ++u) {
        const auto & ubatch = ubatches[u];

        llm_graph_result * res = nullptr;

        const auto status = run({ 0, params.k }, ubatch, *mctx, res);
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
    const ggml_tensor * rows   = ggml_graph_get_tensor(res.get_gf(), rows_name);
    const ggml_tensor * scores = ggml_graph_get_tensor(res.get_gf(), scores_name);

    n_ubatches++;
    if (visual && new_span) {
        new_span = false;
        n_spans++;
    }

    std::vector<pending_row> added;
    added.reserve(ubatch.n_tokens);

    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        added.push_back({
            /*.pos    =*/ ubatch.pos[i],
            /*.cell   =*/ sinfo.idxs[0][i],
            /*.ubatch =*/ n_ubatches,
            /*.span   =*/ visual ? n_spans : -1,
            /*.output =*/ outputs[i] ? ubatch.data->batch_idxs[i] : -1,
            /*.causal =*/ ctx.cparams.causal_attn,
        });
    }
    ggml_backend_tensor_get(rows, memory.pending.append(added), 0, ggml_nbytes(rows));

    cell_scores.resize(ggml_nelements(scores));
    ggml_backend_tensor_get(scores, cell_scores.data(), 0, ggml_nbytes(scores));
}

ggml_status staged_decode::run(stage layers, const llama_ubatch & ubatch, llama_memory_context_i & mctx, llm_graph_result *& res) {
    const scoped_value<stage> scope(ctx.cparams.stage, layers);

    ggml_status status = GGML_STATUS_FAILED;

    res = ctx.process_ubatch(ubatch, LLM_GRAPH_TYPE_DEFAULT, &mctx, status);
    ggml_backend_sched_synchronize(ctx.sched.get());

    return status;
}

//
// flush
//

void staged_decode::reset_report() {
    counts = {};
}

void staged_decode::set_media(pyfastv_media media) {
    this->media = media;
    new_span = true;
}

std::vector<size_t> staged_decode::choose() {
    const timer time(counts.t_choose_ms);

    const auto & rows = memory.pending.all();

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
            last_scores.push_back(cell_scores[rows[i].cell]);
        }

        auto kept = choose_top_k(last_scores.data() + offset, i - i0, params.drop);

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

} // namespace pyfastv
