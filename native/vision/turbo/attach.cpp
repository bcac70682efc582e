// the C API of pyfastv_turbo.h

#include "pyfastv_turbo.h"

#include "capi/caught.h"
#include "capi/sizes.h"
#include "vision/encoders.h"
#include "settings/text.h"
#include "settings/turbo.h"
#include "vision/turbo/plan.h"
#include "vision/turbo/turbo.h"
#include "vision/call_sites.h"

#include "clip.h"
#include "clip-impl.h"
#include "clip-model.h"
#include "mtmd.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <stdexcept>

namespace {

thread_local std::string last_error;

int32_t n_blocks_of(const clip_hparams & hparams, pyfastv::blocks_run blocks) {
    if (blocks == pyfastv::blocks_run::all) {
        return hparams.n_layer;
    }
    return hparams.feature_layers.empty() ? hparams.n_layer - 1 : hparams.feature_layers[0];
}

std::string list_of_merging() {
    const auto names = pyfastv::encoders_that_merge();

    std::string res = names[0];
    for (size_t i = 1; i < names.size(); ++i) {
        res += (i + 1 < names.size() ? ", " : " and ") + names[i];
    }
    return res;
}

// empty: none
std::string unsupported(const mtmd_context * ctx) {
    const auto * clip = mtmd_get_vision(ctx);
    if (!clip) {
        return "the mmproj file has no vision encoder";
    }
    const auto * rule    = pyfastv::rule_of(clip);
    const auto & hparams = *clip_get_hparams(clip);

    if (!rule || !rule->merges()) {
        return "the projector " + PROJECTOR_TYPE_NAMES[clip_get_projector_type(clip)] + " is none of those for whose encoders Turbo merges: " + list_of_merging();
    }
    if (hparams.feature_layers.size() > 1) {
        return "the features of " + std::to_string(hparams.feature_layers.size()) + " layers are joined, which needs the same tokens in all";
    }
    if (n_blocks_of(hparams, rule->blocks) < 1) {
        return "the encoder has no blocks";
    }
    return "";
}

// Why fewer tokens than patches cannot be; empty: they can.
std::string why_restored(const mtmd_context * ctx) {
    const auto * clip = mtmd_get_vision(ctx);
    if (pyfastv::rule_of(clip)->needs_grid()) {
        return "the projector " + PROJECTOR_TYPE_NAMES[clip_get_projector_type(clip)] + " needs the encoder's whole grid";
    }
    return mtmd_decode_use_mrope(ctx) ? "the language model takes positions in two dimensions (M-RoPE)" : "";
}

bool restores(const mtmd_context * ctx, const pyfastv_turbo_params & params) {
    const auto why = why_restored(ctx);

    if (params.restore == 0 && !why.empty()) {
        throw std::invalid_argument("restore=off: " + why + ", so every patch is given a token again behind the blocks");
    }
    if (params.renumber && !why.empty()) {
        throw std::invalid_argument("renumber: " + why + ", so every patch is given a token again behind the blocks, and has its own position");
    }
    return params.restore == 1 || !why.empty();
}

void attach(mtmd_context * ctx, const pyfastv_turbo_params & params) {
    pyfastv::validate(params);

    auto *       clip    = mtmd_get_vision(ctx);
    const auto & rule    = *pyfastv::rule_of(clip);
    const auto & hparams = *clip_get_hparams(clip);

    auto turbo = std::make_unique<pyfastv::turbo>();
    turbo->params   = params;
    turbo->n_blocks = n_blocks_of(hparams, rule.blocks);
    turbo->cls      = clip_get_model(clip).class_embedding && rule.cls != pyfastv::presence::ignored;
    turbo->cls_last = rule.cls_at == pyfastv::cls_row::last;
    turbo->restore  = restores(ctx, params);

    const auto    range  = pyfastv::merging_blocks(params, turbo->n_blocks);
    const int32_t side   = hparams.image_size/hparams.patch_size;
    const int64_t merged = (int64_t) params.r*(range.last - range.first + 1);

    // other pictures have the number of patches that they need
    if (rule.places == pyfastv::place_table::grid && merged >= side*side) {
        throw std::invalid_argument("r = " + std::to_string(params.r) + " in each of " + std::to_string(range.last - range.first + 1) +
                " blocks leaves nothing of " + std::to_string(side*side) + " tokens");
    }

    clip_get_turbo(clip) = std::move(turbo);
}

void check_size(const pyfastv_turbo_params & params) { pyfastv::check_size<pyfastv_turbo_params>("pyfastv_turbo_params", params.size); }

template <typename F>
size_t copy_out(const mtmd_context * ctx, int32_t * out, size_t cap, F && get) {
    auto * clip = mtmd_get_vision(ctx);
    if (!clip || !clip_get_turbo(clip)) {
        return 0;
    }
    const std::vector<int32_t> & values = get(*clip_get_turbo(clip));

    std::copy_n(values.begin(), std::min(values.size(), cap), out);
    return values.size();
}

} // namespace

enum pyfastv_status pyfastv_turbo_default_params(struct pyfastv_turbo_params * params, size_t size) {
    return pyfastv::as_status(last_error, [&] {
        pyfastv::check_size<pyfastv_turbo_params>("pyfastv_turbo_params", size);
        *params = pyfastv::default_turbo();
        return PYFASTV_OK;
    });
}

enum pyfastv_status pyfastv_turbo_parse(const char * text, struct pyfastv_turbo_params * params) {
    return pyfastv::as_status(last_error, [&] {
        check_size(*params);
        *params = pyfastv::parse_turbo(text);
        return PYFASTV_OK;
    });
}

const char * pyfastv_turbo_unsupported_reason(const struct mtmd_context * ctx) {
    const auto status = pyfastv::as_status(last_error, [&] {
        last_error = unsupported(ctx);
        return PYFASTV_OK;
    });
    return status == PYFASTV_OK && last_error.empty() ? nullptr : last_error.c_str();
}

enum pyfastv_status pyfastv_turbo_attach(struct mtmd_context * ctx, const struct pyfastv_turbo_params * params) {
    if (!params) {
        if (auto * clip = mtmd_get_vision(ctx)) {
            clip_get_turbo(clip).reset();
        }
        return PYFASTV_OK;
    }
    return pyfastv::as_status(last_error, [&] {
        check_size(*params);
        const auto reason = unsupported(ctx);
        if (!reason.empty()) {
            last_error = "this encoder's tokens cannot be merged: " + reason;
            return PYFASTV_UNSUPPORTED;
        }
        attach(ctx, *params);
        return PYFASTV_OK;
    });
}

size_t pyfastv_turbo_places(const struct mtmd_context * ctx, int32_t * out, size_t cap) {
    return copy_out(ctx, out, cap, [](const pyfastv::turbo & turbo) -> const auto & { return turbo.places; });
}

size_t pyfastv_turbo_sizes(const struct mtmd_context * ctx, int32_t * out, size_t cap) {
    return copy_out(ctx, out, cap, [](const pyfastv::turbo & turbo) -> const auto & { return turbo.sizes; });
}

size_t pyfastv_turbo_targets(const struct mtmd_context * ctx, int32_t * out, size_t cap) {
    return copy_out(ctx, out, cap, [](const pyfastv::turbo & turbo) -> const auto & { return turbo.targets; });
}

void pyfastv_turbo_set_places(struct mtmd_context * ctx, const int32_t * places, size_t n) {
    auto * clip = mtmd_get_vision(ctx);
    if (clip && clip_get_turbo(clip)) {
        auto & turbo = *clip_get_turbo(clip);
        turbo.forget();
        pyfastv::as_status(last_error, [&] {
            turbo.places.assign(places, places + n);
            return PYFASTV_OK;
        });
    }
}

int32_t pyfastv_turbo_patches(const struct mtmd_image_tokens * image_tokens) {
    return mtmd_image_tokens_get_n_patches(image_tokens);
}

const char * pyfastv_turbo_last_error(void) {
    return last_error.c_str();
}

mtmd_context * pyfastv::turbo_from_environment(mtmd_context * ctx) {
    const char * text = getenv("LLAMA_TURBO");
    if (!text || !*text || pyfastv::is_off(text)) {
        return ctx;
    }
    auto params = pyfastv::default_turbo();
    if (pyfastv_turbo_parse(text, &params) != PYFASTV_OK || pyfastv_turbo_attach(ctx, &params) != PYFASTV_OK) {
        // a program may make several contexts
        static std::once_flag told;
        std::call_once(told, [&] { fprintf(stderr, "LLAMA_TURBO=%s: nothing is merged: %s\n", text, last_error.c_str()); });
    }
    return ctx;
}
