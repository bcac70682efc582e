// engine: what is made of logits, and how requests end

#include "runner/engine.h"

#include "runner/errors.h"
#include "runner/stopwatch.h"

#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace pyfastv {

void engine::answer(slot & s, const float * logits, events & out) {
    if (s.now != slot::state::ready && !(s.now == slot::state::starting && s.request.opened)) {
        sample(s, logits, out);
        return;
    }
    s.now = slot::state::ready;
    if (logits) {
        s.logits.assign(logits, logits + n_vocab());
    }
    auto event = event_of(s);
    event.ready = true;
    out.push_back(std::move(event));
}

llama_token engine::pick(slot & s, const float * logits) const {
    auto & how = s.request.sampling;

    std::vector<llama_token_data> candidates(n_vocab());
    for (llama_token token = 0; token < n_vocab(); ++token) {
        candidates[token] = { token, logits[token], 0.0f };
    }
    llama_token_data_array array = { candidates.data(), candidates.size(), -1, false };

    for (int32_t i = 0; i < llama_sampler_chain_n(how.sampler.get()); ++i) {
        llama_sampler_apply(llama_sampler_chain_get(how.sampler.get(), i), &array);

        // accepting a token that is not allowed would end the process
        if (i < how.n_excluding && std::none_of(candidates.begin(), candidates.end(), [](const auto & c) { return std::isfinite(c.logit); })) {
            return LLAMA_TOKEN_NULL;
        }
    }
    if (array.selected < 0 || (size_t) array.selected >= array.size) {
        throw error(error_kind::decode, "the samplers left no token");
    }
    const llama_token token = array.data[array.selected].id;
    try {
        llama_sampler_accept(how.sampler.get(), token);
    } catch (const std::exception &) {
        if (!how.is_lazy) {
            throw;
        }
        // the token has what triggers the grammar, and behind it what does not follow it: the answer goes on as text
        llama_sampler_free(llama_sampler_chain_remove(how.sampler.get(), 0));
        how.is_lazy = false;
        how.n_excluding--;
        llama_sampler_accept(how.sampler.get(), token);
    }

    return token;
}

void engine::sample(slot & s, const float * logits, events & out) {
    const stopwatch watch;

    auto         event = event_of(s);
    const auto & how = s.request.sampling;
    if (how.max_tokens == 0) {
        finish(s, std::move(event), "length", out);
        return;
    }

    llama_token token;
    try {
        token = pick(s, logits);
    } catch (const std::exception & err) {
        fail(s, error(error_kind::decode, std::string("no token could be sampled: ") + err.what()), out);
        return;
    }

    if (s.counts.first_token_ms == 0) {
        s.counts.first_token_ms = (ggml_time_us() - s.t_start_us)/1000.0;
    }
    s.counts.generate_ms += watch.ms();

    if (token == LLAMA_TOKEN_NULL || llama_vocab_is_eog(vocab, token)) {
        finish(s, std::move(event), "stop", out);
        return;
    }
    s.now     = slot::state::generating;
    s.sampled = token;
    s.counts.generated_tokens++;

    event.token = token;
    event.bytes = piece_of(vocab, token, std::find(how.preserved.begin(), how.preserved.end(), token) != how.preserved.end());
    if (how.n_probs > 0) {
        add_probs(event, logits, how.n_probs);
    }

    // who waits for an opened request comes for its end
    if (has_all(s) && !s.request.opened) {
        finish(s, std::move(event), "length", out);
    } else {
        out.push_back(std::move(event));
    }
}

bool engine::has_all(const slot & s) const {
    const int32_t max_tokens = s.request.sampling.max_tokens;

    return (max_tokens >= 0 && s.counts.generated_tokens >= max_tokens) || s.n_tokens >= n_ctx_slot;
}

void engine::add_probs(slot_event & event, const float * logits, int32_t n) const {
    const float highest = *std::max_element(logits, logits + n_vocab());

    double sum = 0;
    for (int32_t i = 0; i < n_vocab(); ++i) {
        sum += std::exp((double) logits[i] - highest);
    }
    const double log_sum = highest + std::log(sum);

    std::vector<llama_token> order(n_vocab());
    for (int32_t i = 0; i < n_vocab(); ++i) {
        order[i] = i;
    }
    std::partial_sort(order.begin(), order.begin() + n, order.end(), [&](llama_token a, llama_token b) {
        return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
    });

    event.logprob = (float) (logits[event.token] - log_sum);
    for (int32_t i = 0; i < n; ++i) {
        event.top.push_back({ order[i], piece_of(vocab, order[i]), (float) (logits[order[i]] - log_sum) });
    }
}

} // namespace pyfastv
