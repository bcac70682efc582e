// engine: generation

#include "runner/engine.h"

#include "runner/damage.h"
#include "runner/errors.h"
#include "runner/log.h"
#include "runner/stopwatch.h"

#include "ggml.h"

#include <utility>

namespace pyfastv {

const float * engine::logits() {
    check_sound();

    const float * res = evaluated.empty() ? nullptr : llama_get_logits_ith(ctx.get(), -1);
    if (!res) {
        throw error(error_kind::option, "there are no logits: nothing has been evaluated");
    }
    return res;
}

void engine::feed(llama_token token) {
    if (token < 0 || token >= n_vocab()) {
        throw error(error_kind::option, "token " + std::to_string(token) + " is out of range: the vocabulary has " + std::to_string(n_vocab()) + " tokens");
    }

    check_sound();
    require_memory();

    prompt_piece piece;
    piece.token = token;

    decode_text({ piece }, 0, 1, true);
}

void engine::start(const sampling_options & sampling) {
    const log_scope log(options.verbose);

    check_numbers(logits(), n_vocab(), "the language model", options); // throws if there are none
    sampler    = make_sampler(vocab, sampling, n_ctx());
    max_tokens = (int32_t) sampling.max_tokens;
    finish     = nullptr;
    sampled.reset();

    counts.generated_tokens = 0;
    counts.generate_ms      = 0;
}

std::optional<std::pair<llama_token, std::string>> engine::next() {
    const log_scope log(options.verbose);

    check_sound();
    if (!sampler) {
        throw error(error_kind::option, "generation was not started");
    }
    if (finish) {
        return std::nullopt;
    }

    const stopwatch watch;

    if (max_tokens >= 0 && counts.generated_tokens >= max_tokens) {
        finish = "length";
        return std::nullopt;
    }
    if (sampled) {
        if (n_tokens() >= n_ctx()) {
            finish = "length";
            return std::nullopt;
        }
        feed(*sampled);
        sampled.reset();
    }

    const llama_token token = llama_sampler_sample(sampler.get(), ctx.get(), -1);
    if (counts.first_token_ms == 0) {
        counts.first_token_ms = (ggml_time_us() - t_prefill_us)/1000.0;
    }
    counts.generate_ms += watch.ms();

    if (llama_vocab_is_eog(vocab, token)) {
        finish = "stop";
        return std::nullopt;
    }

    counts.generated_tokens++;
    sampled = token;

    return std::make_pair(token, piece_of(vocab, token));
}

} // namespace pyfastv
