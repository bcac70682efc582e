#include "llama/supported.h"

#include "settings/rules.h"
#include "settings/schedule.h"

#include "llama-arch.h"
#include "llama-model.h"

#include <algorithm>

namespace pyfastv {

// Recurrent layers beside attention whose graph builders ask for the input of a layer's kind in that layer, not once for all.
static bool is_staged_hybrid(const llama_model & model) {
    switch (model.arch) {
        case LLM_ARCH_QWEN35:
        case LLM_ARCH_QWEN35MOE:
        case LLM_ARCH_QWEN3NEXT:
        case LLM_ARCH_LFM2:
        case LLM_ARCH_LFM2MOE:
        case LLM_ARCH_GRANITE_HYBRID:
            return true;
        default:
            return false;
    }
}

// Layers behind the first n_layer_kv_from_start read keys and values of the two before those.
static bool shares_caches(const llama_hparams & hparams) {
    return hparams.n_layer_kv_from_start >= 0 && hparams.n_layer_kv_from_start < (int32_t) hparams.n_layer();
}

const char * unsupported_reason(const llama_model & model) {
    const auto & hparams = model.hparams;

    const bool is_hybrid = llm_arch_is_hybrid(model.arch);

    if (llm_arch_is_recurrent(model.arch)) {
        return "its memory is recurrent: there is no KV cache of single tokens to leave tokens out of";
    }
    if (is_hybrid && !is_staged_hybrid(model)) {
        return "its recurrent layers are of a kind that this version does not run in stages";
    }
    if (is_hybrid && hparams.swa_type != LLAMA_SWA_TYPE_NONE) {
        return "it has sliding windows beside recurrent layers";
    }
    if (llama_model_has_encoder(&model)) {
        return "it is an encoder-decoder model";
    }
    // what a chunk sees of a position is never further back than a sliding window of its size
    if (hparams.swa_type != LLAMA_SWA_TYPE_NONE && hparams.swa_type != LLAMA_SWA_TYPE_STANDARD && hparams.swa_type != LLAMA_SWA_TYPE_CHUNKED) {
        return "its attention windows are neither sliding nor chunks";
    }
    if (hparams.is_mla() && model.arch != LLM_ARCH_DEEPSEEK2 && model.arch != LLM_ARCH_MISTRAL4) {
        return "its latent attention is of a kind that this version does not run in stages";
    }
    if (hparams.ple_n_heads > 0 || (hparams.n_embd_per_layer > 0 && model.arch != LLM_ARCH_GEMMA4)) {
        return "it feeds token ids into later layers (per-layer embeddings)";
    }
    if (shares_caches(hparams) && model.arch != LLM_ARCH_GEMMA4) {
        return "its later layers share the KV caches of earlier ones";
    }
    if (model.arch == LLM_ARCH_COGVLM) {
        return "its layers have other weights for visual tokens than for text, and use one of them for a whole batch";
    }
    if (model.arch == LLM_ARCH_GROK) {
        return "it squashes its attention logits in a way that the scores do not follow";
    }
    if (hparams.n_layer() < 2) {
        return "it has fewer than 2 layers";
    }

    return nullptr;
}

const char * unsupported_layer(const llama_model & model, int32_t layer, bool reads_attention) {
    const auto & hparams = model.hparams;

    if (layer < 1 || layer >= (int32_t) hparams.n_layer()) {
        return "it is outside the model";
    }

    // after the outputs of the first layers (deepstack) or of listed ones
    int32_t last_fed = (int32_t) hparams.n_deepstack_layers - 1;
    if (hparams.n_deepstack_layers > 0) {
        for (int32_t il = 0; il < (int32_t) hparams.n_layer(); ++il) {
            if (hparams.deepstack_mapping_arr[il] >= 0) {
                last_fed = std::max(last_fed, il);
            }
        }
    }
    if (layer <= last_fed + 1 && last_fed >= 0) {
        return "the model adds visual features to layers up to there (deepstack)";
    }
    if (shares_caches(hparams) && layer > hparams.n_layer_kv_from_start - 2) {
        return "the layers behind it share the KV caches of layers in front of it";
    }
    if (reads_attention && hparams.is_recr(layer - 1)) {
        return "the layer before it is recurrent, which gives no scores";
    }
    if (reads_attention && hparams.is_swa(layer - 1)) {
        return "the layer before it sees only a sliding window, which gives no scores";
    }

    return nullptr;
}

void fit_layers(const llama_model & model, pyfastv_params & params) {
    const auto n_layer = (int32_t) model.hparams.n_layer();

    validate(params, n_layer);

    auto    fitted = params;
    int32_t first  = 1; // behind the cut before
    for (int32_t c = 0; c < params.n_cuts; ++c) {
        auto & cut = fitted.cuts[c];

        cut.layer = std::max(cut.layer, first);
        while (cut.layer < n_layer && unsupported_layer(model, cut.layer, reads_attention(cut))) {
            cut.layer++;
        }
        if (cut.layer >= n_layer) {
            return;
        }
        first = cut.layer + 1;
    }
    params = fitted;
}

const char * unsupported_rule(const llama_model & model, const pyfastv_cut & cut) {
    if (score_rule_of(cut).no_rope && model.hparams.is_mla()) {
        return "score = last-no-rope does not know latent attention, whose keys are rotated in part";
    }
    if (cut.weigh && model.hparams.f_max_alibi_bias > 0.0f) {
        return "its attention (ALiBi) scales what weigh adds to it";
    }
    return nullptr;
}

} // namespace pyfastv
