// staged_decode: giving a context stages, and taking them away

#include "stages/scopes.h"
#include "stages/staged_decode.h"

#include "llama/supported.h"
#include "settings/rules.h"
#include "settings/schedule.h"
#include "settings/text.h"

#include "llama/interfaces.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

namespace pyfastv {

staged_decode::staged_decode(context_access ctx, const pyfastv_params & params, staged_memory & memory) :
    ctx(ctx), eval(ctx.eval_callback(), ctx.eval_callback_data()), params(params), memory(memory) {}

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

static std::string next_layer(context_access ctx, const pyfastv_cut & cut) {
    for (int32_t il = cut.layer + 1; il < ctx.n_layer(); ++il) {
        if (!unsupported_layer(ctx.model(), il, reads_attention(cut))) {
            return "; the next possible is layer " + std::to_string(il);
        }
    }
    return "";
}

static void refuse_cuts(context_access ctx, const pyfastv_params & params) {
    for (int32_t c = 0; c < params.n_cuts; ++c) {
        if (const char * reason = unsupported_rule(ctx.model(), params.cuts[c])) {
            throw unsupported(reason);
        }
        if (const char * reason = unsupported_layer(ctx.model(), params.cuts[c].layer, reads_attention(params.cuts[c]))) {
            throw unsupported("a cut at layer " + std::to_string(params.cuts[c].layer) + " is not possible: " + reason + next_layer(ctx, params.cuts[c]));
        }
    }
}

void staged_decode::attach(llama_context & context, const pyfastv_params & params) {
    const context_access ctx(context);

    validate(params, ctx.n_layer());

    if (const char * reason = unsupported_reason(ctx.model())) {
        throw unsupported(reason);
    }
    if (!ctx.has_memory()) {
        throw unsupported("its memory is not a plain KV cache");
    }
    refuse_cuts(ctx, params);

    const uint32_t n_ctx = ctx.n_ctx();

    if (ctx.stages() && same_memory(ctx.stages()->params, params, n_ctx)) {
        auto & memory = ctx.stages()->memory;

        memory.clear(false);
        ctx.set_stages(staged_decode_ptr(new staged_decode(ctx, params, memory)));
        ctx.forget_reservation(); // another rule may not be possible here
        try {
            ctx.reserve();
        } catch (...) {
            make_plain(ctx, memory.cache(0).layout());
            throw;
        }
        return;
    }

    if (ctx.n_seq_max() != 1 && !ctx.unified()) {
        throw unsupported("the context has n_seq_max = " + std::to_string(ctx.n_seq_max()) +
                " and a KV cache for each sequence; stages need one for all (kv_unified)");
    }
    if (const char * reason = ctx.unsupported_output()) {
        throw unsupported(reason);
    }

    const auto layout = ctx.stages() ? ctx.stages()->memory.cache(0).layout() : ctx.layout();

    // the old cache goes first: two at a time may not fit
    ctx.set_stages(nullptr);
    ctx.set_memory(nullptr);

    try {
        auto first = first_layers_of(params);

        std::vector<std::unique_ptr<stage_cache>> caches;
        for (size_t s = 0; s < first.size(); ++s) {
            const int32_t  end     = s + 1 < first.size() ? first[s + 1] : stage::all;
            const uint32_t n_cells = s == 0 ? n_ctx : n_cells_of(params, s - 1, n_ctx);

            caches.push_back(ctx.make_cache(layout, first[s], end, n_cells));
        }

        auto memory = std::make_unique<staged_memory>(std::move(first), std::move(caches), ctx.n_embd());

        ctx.set_stages(staged_decode_ptr(new staged_decode(ctx, params, *memory)));
        ctx.set_memory(std::move(memory));

        ctx.forget_reservation();
        ctx.reserve();
    } catch (...) {
        make_plain(ctx, layout);
        throw;
    }
}

void staged_decode::attach_from_env(llama_context & context, const llama_context_params & made_with) {
    const context_access ctx(context);

    const char * text = getenv("LLAMA_FASTV");

    if (!text || !*text || is_off(text) || !ctx.has_memory()) {
        return;
    }
    // drafts for another context: what they cost is not a picture's
    if (made_with.ctx_other || made_with.ctx_type != LLAMA_CONTEXT_TYPE_DEFAULT) {
        return;
    }
    try {
        const auto params = to_params(parse_schedule(text), ctx.n_layer());
        attach(context, params);
        LLAMA_LOG_INFO("LLAMA_FASTV: %s\n", to_text(params).c_str());
    } catch (const std::exception & err) {
        if (!ctx.has_memory()) {
            throw; // this context cannot be used
        }
        // a program may make several contexts
        static std::once_flag told;
        std::call_once(told, [&] { fprintf(stderr, "LLAMA_FASTV=%s: nothing is pruned: %s\n", text, err.what()); });
    }
}

void staged_decode::detach(llama_context & context) {
    const context_access ctx(context);

    if (ctx.stages()) {
        make_plain(ctx, ctx.stages()->memory.cache(0).layout());
    }
}

void staged_decode::allow_position_gaps(llama_context & ctx) {
    context_access(ctx).allow_gaps();
}

void staged_decode::make_plain(context_access ctx, cache_layout layout) {
    ctx.set_stages(nullptr);
    ctx.set_memory(nullptr);
    ctx.set_memory(ctx.make_cache(layout, 0, stage::all, ctx.n_ctx())->release());

    ctx.forget_reservation();
    ctx.reserve();
}

stage staged_decode::stage_to_run(int s, int32_t n_scored) const {
    stage res;
    res.il0 = memory.first_layers()[s];

    if (s + 1 < memory.n_stages()) {
        const auto & cut = params.cuts[s];

        res.il1      = cut.layer;
        res.no_rope  = score_rule_of(cut).no_rope;
        res.n_scored = reads_attention(cut) ? n_scored : 0;
    }

    return res;
}

void staged_decode::reserve() {
    const auto mctx = memory.init_full();

    for (int s = 0; s < memory.n_stages(); ++s) {
        // rows that are read lie anywhere in a ubatch of several sequences
        const bool all_rows = s + 1 < memory.n_stages() && (ctx.n_seq_max() > 1 || every_row_votes(params.cuts[s]));

        ctx.reserve_stage(stage_to_run(s, all_rows ? stage::all : 1), *mctx);
    }
    ctx.note_buffer_sizes();
}

} // namespace pyfastv
