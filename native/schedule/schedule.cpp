#include "schedule/schedule.h"

#include "llama-arch.h"
#include "llama-model.h"

#include <stdexcept>
#include <string>

namespace pyfastv {

const char * unsupported_reason(const llama_model & model) {
    const auto & hparams = model.hparams;

    if (llm_arch_is_recurrent(model.arch) || llm_arch_is_hybrid(model.arch)) {
        return "its memory is recurrent: there is no KV cache of single tokens to leave tokens out of";
    }
    if (llama_model_has_encoder(&model)) {
        return "it is an encoder-decoder model";
    }
    if (hparams.swa_type != LLAMA_SWA_TYPE_NONE) {
        return "it has sliding-window layers, which this version does not run in stages";
    }
    if (hparams.n_pos_per_embd() > 1) {
        return "it uses M-RoPE, which this version does not run in stages";
    }
    if (hparams.is_mla()) {
        return "it uses multi-head latent attention, whose cache holds no keys to score with";
    }
    if (hparams.n_deepstack_layers > 0) {
        return "it adds visual features inside the first layers (deepstack), which this version does not run in stages";
    }
    if (hparams.ple_n_heads > 0) {
        return "it feeds token ids into later layers (per-layer embeddings)";
    }
    if (model.arch == LLM_ARCH_GROK) {
        return "it squashes its attention logits in a way that the scores do not follow";
    }
    if (hparams.n_layer() < 2) {
        return "it has fewer than 2 layers";
    }

    return nullptr;
}

void validate(const pyfastv_params & params, int32_t n_layer) {
    if (params.k < 1 || params.k >= n_layer) {
        throw std::invalid_argument("k = " + std::to_string(params.k) + " is out of range: this model has " +
                std::to_string(n_layer) + " layers, so 1 <= k <= " + std::to_string(n_layer - 1));
    }
    // written so that NaN fails
    if (!(params.drop >= 0.0f && params.drop < 1.0f)) {
        throw std::invalid_argument("drop = " + std::to_string(params.drop) + " is out of range: 0 <= drop < 1");
    }
    if (params.score < PYFASTV_SCORE_LAST || params.score > PYFASTV_SCORE_QUESTION_MAX) {
        throw std::invalid_argument("score = " + std::to_string(params.score) + " is no pyfastv_score");
    }
    if (params.pick < PYFASTV_PICK_TOP_K || params.pick > PYFASTV_PICK_UNIFORM) {
        throw std::invalid_argument("pick = " + std::to_string(params.pick) + " is no pyfastv_pick");
    }
    if (params.pick == PYFASTV_PICK_WINDOW && params.window < 1) {
        throw std::invalid_argument("window = " + std::to_string(params.window) + " is out of range: at least 1");
    }
}

} // namespace pyfastv
