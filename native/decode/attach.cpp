// staged_decode: giving a context stages, and taking them away

#include "decode/scopes.h"
#include "decode/staged_decode.h"

#include "schedule/names.h"
#include "schedule/schedule.h"

#include "llama-context.h"
#include "llama-model.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <typeinfo>
#include <utility>

namespace pyfastv {

staged_decode::staged_decode(llama_context & ctx, const pyfastv_params & params, staged_memory & memory) :
    ctx(ctx), params(params), memory(memory) {}

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

const char * staged_decode::unsupported_output(const llama_context & ctx) {
    if (ctx.cparams.embeddings || !ctx.sampling.samplers.empty()) {
        return "the context outputs embeddings or samples in its graph, which this version does not do in stages";
    }
    return nullptr;
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
    if (const char * reason = unsupported_output(ctx)) {
        throw unsupported(reason);
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

void staged_decode::attach_from_env(llama_context & ctx) {
    const char * text = getenv("LLAMA_FASTV");

    if (!text || !*text || !ctx.memory) {
        return;
    }
    try {
        attach(ctx, parse_params(text));
    } catch (const std::exception & err) {
        fprintf(stderr, "LLAMA_FASTV=%s: nothing is pruned: %s\n", text, err.what());
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

} // namespace pyfastv
