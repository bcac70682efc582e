// staged_decode: giving a context stages, and taking them away

#include "decode/scopes.h"
#include "decode/staged_decode.h"

#include "schedule/schedule.h"
#include "settings/rules.h"
#include "settings/schedule.h"
#include "settings/text.h"

#include "llama-batch.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

namespace pyfastv {

staged_decode::staged_decode(llama_context & ctx, const pyfastv_params & params, staged_memory & memory) :
    ctx(ctx), eval(ctx.cparams.cb_eval, ctx.cparams.cb_eval_user_data), params(params), memory(memory) {}

const char * staged_decode::unsupported_output(const llama_context & ctx) {
    const auto & inputs = ctx.cparams.embeddings_layer_inp;

    if (ctx.cparams.embeddings || !ctx.sampling.samplers.empty()) {
        return "the context outputs embeddings or samples in its graph, which this version does not do in stages";
    }
    if (ctx.cparams.embeddings_nextn || std::find(inputs.begin(), inputs.end(), true) != inputs.end()) {
        return "the context outputs hidden rows for a draft model, which this version does not do in stages";
    }
    return nullptr;
}

static std::vector<int32_t> first_layers_of(const pyfastv_params & params) {
    std::vector<int32_t> res = { 0 };
    for (int32_t c = 0; c < params.n_cuts; ++c) {
        res.push_back(params.cuts[c].layer);
    }
    return res;
}

// KV cells of the stage behind a cut
static uint32_t n_cells_of(const pyfastv_params & params, int32_t cut, uint32_t n_ctx) {
    if (params.n_cells == 0) {
        return n_ctx;
    }
    const double n = params.n_cells > 0 ? params.n_cells : n_ctx*(1.0 - params.cuts[cut].drop) + n_ctx/4.0;

    return std::min(n_ctx, (uint32_t) (256*std::ceil(n/256)));
}

static bool same_memory(const pyfastv_params & a, const pyfastv_params & b, uint32_t n_ctx) {
    if (first_layers_of(a) != first_layers_of(b)) {
        return false;
    }
    for (int32_t c = 0; c < a.n_cuts; ++c) {
        if (n_cells_of(a, c, n_ctx) != n_cells_of(b, c, n_ctx)) {
            return false;
        }
    }
    return true;
}

static std::string next_layer(const llama_model & model, const pyfastv_cut & cut) {
    for (int32_t il = cut.layer + 1; il < (int32_t) model.hparams.n_layer(); ++il) {
        if (!unsupported_layer(model, il, reads_attention(cut))) {
            return "; the next possible is layer " + std::to_string(il);
        }
    }
    return "";
}

static void refuse_cuts(const llama_model & model, const pyfastv_params & params) {
    for (int32_t c = 0; c < params.n_cuts; ++c) {
        if (const char * reason = unsupported_rule(model, params.cuts[c])) {
            throw unsupported(reason);
        }
        if (const char * reason = unsupported_layer(model, params.cuts[c].layer, reads_attention(params.cuts[c]))) {
            throw unsupported("a cut at layer " + std::to_string(params.cuts[c].layer) + " is not possible: " + reason + next_layer(model, params.cuts[c]));
        }
    }
}

void staged_decode::attach(llama_context & ctx, const pyfastv_params & params) {
    validate(params, ctx.model.hparams.n_layer());

    if (const char * reason = unsupported_reason(ctx.model)) {
        throw unsupported(reason);
    }
    if (!ctx.memory) {
        throw unsupported("its memory is not a plain KV cache");
    }
    refuse_cuts(ctx.model, params);

    const uint32_t n_ctx = ctx.cparams.n_ctx_seq;

    if (ctx.fastv && same_memory(ctx.fastv->params, params, n_ctx)) {
        auto & memory = ctx.fastv->memory;

        memory.clear(false);
        ctx.fastv.reset(new staged_decode(ctx, params, memory));
        ctx.sched_need_reserve = true; // another rule may not be possible here
        try {
            ctx.sched_reserve();
        } catch (...) {
            make_plain(ctx, memory.cache(0).layout());
            throw;
        }
        return;
    }

    if (ctx.cparams.n_seq_max != 1 && !ctx.cparams.kv_unified) {
        throw unsupported("the context has n_seq_max = " + std::to_string(ctx.cparams.n_seq_max) +
                " and a KV cache for each sequence; stages need one for all (kv_unified)");
    }
    if (const char * reason = unsupported_output(ctx)) {
        throw unsupported(reason);
    }

    const auto layout = ctx.fastv ? ctx.fastv->memory.cache(0).layout() : stage_cache::layout_of(*ctx.memory);

    // the old cache goes first: two at a time may not fit
    ctx.synchronize();
    ctx.fastv.reset();
    ctx.memory.reset();

    try {
        auto first = first_layers_of(params);

        std::vector<std::unique_ptr<stage_cache>> caches;
        for (size_t s = 0; s < first.size(); ++s) {
            const int32_t  end     = s + 1 < first.size() ? first[s + 1] : stage::all;
            const uint32_t n_cells = s == 0 ? n_ctx : n_cells_of(params, s - 1, n_ctx);

            caches.push_back(std::make_unique<stage_cache>(ctx.model, ctx.cparams, layout, first[s], end, n_cells));
        }

        auto memory = std::make_unique<staged_memory>(std::move(first), std::move(caches), ctx.model.hparams.n_embd);

        ctx.fastv.reset(new staged_decode(ctx, params, *memory));
        ctx.memory = std::move(memory);

        ctx.sched_need_reserve = true;
        ctx.sched_reserve();
    } catch (...) {
        make_plain(ctx, layout);
        throw;
    }
}

void staged_decode::attach_from_env(llama_context & ctx) {
    const char * text = getenv("LLAMA_FASTV");

    if (!text || !*text || is_off(text) || !ctx.memory) {
        return;
    }
    try {
        const auto params = to_params(parse_schedule(text), ctx.model.hparams.n_layer());
        attach(ctx, params);
        LLAMA_LOG_INFO("LLAMA_FASTV: %s\n", to_text(params).c_str());
    } catch (const std::exception & err) {
        if (!ctx.memory) {
            throw; // this context cannot be used
        }
        // a program may make several contexts
        static std::once_flag told;
        std::call_once(told, [&] { fprintf(stderr, "LLAMA_FASTV=%s: nothing is pruned: %s\n", text, err.what()); });
    }
}

void staged_decode::detach(llama_context & ctx) {
    if (!ctx.fastv) {
        return;
    }
    make_plain(ctx, ctx.fastv->memory.cache(0).layout());
}

void staged_decode::allow_position_gaps(llama_context & ctx) {
    ctx.balloc->gaps = true;
}

void staged_decode::make_plain(llama_context & ctx, cache_layout layout) {
    ctx.synchronize();
    ctx.fastv.reset();
    ctx.memory.reset();
    ctx.memory = stage_cache(ctx.model, ctx.cparams, layout, 0, stage::all, ctx.cparams.n_ctx_seq).release();

    ctx.sched_need_reserve = true;
    ctx.sched_reserve();
}

stage staged_decode::stage_to_run(int s, int32_t n_scored) const {
    stage res;
    res.il0 = memory.first_layers()[s];

    if (s + 1 < memory.n_stages()) {
        const auto & cut = params.cuts[s];

        res.il1      = cut.layer;
        res.no_rope  = rule_of(cut.score).no_rope;
        res.n_scored = reads_attention(cut) ? n_scored : 0;
    }

    return res;
}

void staged_decode::reserve() {
    const auto     mctx      = memory.init_full();
    const uint32_t n_tokens  = std::min(ctx.cparams.n_ctx, ctx.cparams.n_ubatch);
    const uint32_t n_outputs = std::min(n_tokens, ctx.cparams.n_outputs_max);

    for (int s = 0; s < memory.n_stages(); ++s) {
        // rows that are read lie anywhere in a ubatch of several sequences
        const bool all_rows = s + 1 < memory.n_stages() && (ctx.cparams.n_seq_max > 1 || every_row_votes(params.cuts[s].score));

        const scoped_value<stage> scope(ctx.cparams.stage, stage_to_run(s, all_rows ? stage::all : 1));

        if (!ctx.graph_reserve(n_tokens, 1, n_outputs, mctx.get())) {
            throw std::runtime_error("failed to allocate the compute buffers of a stage");
        }
    }

    // the context compares its buffers with this when it is freed
    for (size_t i = 0; i < ctx.backend_ptrs.size(); ++i) {
        ctx.backend_buf_exp_size[i] = ggml_backend_sched_get_buffer_size(ctx.sched.get(), ctx.backend_ptrs[i]);
    }
}

} // namespace pyfastv
