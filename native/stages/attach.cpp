// staged_decode: giving a context stages, and taking them away

#include "stages/scopes.h"
#include "stages/staged_decode.h"

#include "llama/stage_output.h"
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

staged_decode::staged_decode(context_access ctx, staged_memory & memory) :
    ctx(ctx), eval(ctx.eval_callback(), ctx.eval_callback_data()), memory(memory) {
    for (int s = 0; s < memory.n_stages(); ++s) {
        largest.push_back(stage_to_run(s));
    }
    add_to_largest(memory.schedules.own());
    memory.admit = [this](const pyfastv_params & schedule) {
        check(schedule);
        ensure_graphs(schedule);
    };
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

static std::string next_layer(context_access ctx, const pyfastv_cut & cut) {
    for (int32_t il = cut.layer + 1; il < ctx.n_layer(); ++il) {
        if (!unsupported_layer(ctx.model(), il, reads_attention(cut))) {
            return "; the next possible is layer " + std::to_string(il);
        }
    }
    return "";
}

static std::string layers_of(const pyfastv_params & params) {
    std::string res = params.n_cuts == 1 ? "layer" : "layers";
    for (int32_t c = 0; c < params.n_cuts; ++c) {
        res += (c > 0 ? ", " : " ") + std::to_string(params.cuts[c].layer);
    }
    return res;
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

    if (ctx.stages() && ctx.stages()->fits(params)) {
        auto & memory = ctx.stages()->memory;

        memory.clear(false);
        memory.schedules = sequence_schedules(params);
        ctx.set_stages(staged_decode_ptr(new staged_decode(ctx, memory)));
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

        auto memory = std::make_unique<staged_memory>(std::move(first), std::move(caches), ctx.width(), params);

        ctx.set_stages(staged_decode_ptr(new staged_decode(ctx, *memory)));
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
        auto       params = to_params(parse_schedule(text), ctx.n_layer());
        const auto asked  = layers_of(params);
        fit_layers(ctx.model(), params);
        attach(context, params);
        LLAMA_LOG_INFO("LLAMA_FASTV: %s\n", to_text(params).c_str());
        if (const auto taken = layers_of(params); taken != asked) {
            LLAMA_LOG_WARN("LLAMA_FASTV: cut at %s, the next possible for %s\n", taken.c_str(), asked.c_str());
        }
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

//
// schedules of sequences
//

bool staged_decode::fits(const pyfastv_params & schedule) const {
    return same_memory(memory.schedules.own(), schedule, ctx.n_ctx());
}

const pyfastv_params & staged_decode::schedule(llama_seq_id seq_id) const {
    return seq_id < 0 ? memory.schedules.own() : memory.schedules.of(seq_id);
}

void staged_decode::check(const pyfastv_params & schedule) const {
    validate(schedule, ctx.n_layer());

    const auto & own = memory.schedules.own();
    if (first_layers_of(schedule) != first_layers_of(own)) {
        throw std::invalid_argument("the cuts of a sequence must be at the layers of its context: it has " + layers_of(own) +
                ", wanted is " + layers_of(schedule) + "; pyfastv_attach() changes the layers, for all sequences");
    }
    refuse_cuts(ctx, schedule);
}

void staged_decode::set_schedule(llama_seq_id seq_id, const pyfastv_params * schedule) {
    if (seq_id < 0 || seq_id >= (llama_seq_id) ctx.n_seq_max()) {
        throw std::invalid_argument("there is no sequence " + std::to_string(seq_id) + ": the context has " + std::to_string(ctx.n_seq_max()));
    }
    const auto seq = memory.sequences.find(seq_id);
    if (seq != memory.sequences.end() && !seq->second.empty()) {
        throw std::invalid_argument("sequence " + std::to_string(seq_id) + " holds visual tokens, which were chosen by the schedule that it has: "
                "remove them first");
    }
    if (!schedule) {
        memory.schedules.take_away(seq_id);
        return;
    }
    check(*schedule);
    if (!fits(*schedule)) {
        throw std::invalid_argument("the later stages of a sequence have the KV cells of its context: n_cells must be as attached (and with -1 "
                "every drop); pyfastv_attach() changes them, for all sequences");
    }
    ensure_graphs(*schedule);
    memory.schedules.give(seq_id, *schedule);
}

//
// graphs
//

stage staged_decode::stage_to_run(int s) const {
    stage res;
    res.il0 = memory.first_layers()[s];

    if (s + 1 < memory.n_stages()) {
        res.il1 = memory.first_layers()[s + 1];
    }

    return res;
}

void staged_decode::ensure_graphs(const pyfastv_params & schedule) {
    const auto before = largest;

    add_to_largest(schedule);
    if (largest == before) {
        return;
    }
    try {
        ctx.forget_reservation();
        ctx.reserve();
    } catch (...) {
        largest = before;
        throw;
    }
}

void staged_decode::add_to_largest(const pyfastv_params & schedule) {
    for (int s = 0; s + 1 < memory.n_stages(); ++s) {
        const auto & cut = schedule.cuts[s];

        // rows that are read lie anywhere in a ubatch of several sequences
        ask_for_scores(largest[s], cut, ctx.n_seq_max() > 1 || every_row_votes(cut) ? stage::all : 1);
    }
}

void staged_decode::reserve() {
    const auto mctx = memory.init_full();

    for (const auto & layers : largest) {
        ctx.reserve_stage(layers, *mctx);
    }
    ctx.note_buffer_sizes();
}

} // namespace pyfastv
