#include "runner/sampler.h"

#include "runner/errors.h"
#include "runner/log.h"

#include <algorithm>
#include <cmath>
#include <regex>
#include <string>
#include <vector>

namespace pyfastv {
namespace {

constexpr float max_bias = 1e9f; // sums of them stay finite

// what is added to logits
std::vector<llama_logit_bias> biases_of(const llama_vocab * vocab, const sampling_options & options) {
    const int32_t n_vocab = llama_vocab_n_tokens(vocab);

    std::vector<llama_logit_bias> res;
    for (const auto & [token, bias] : options.logit_bias) {
        if (token < 0 || token >= n_vocab) {
            throw error(error_kind::option, "logit_bias: token " + std::to_string(token) + " is out of range: the vocabulary has " +
                    std::to_string(n_vocab) + " tokens");
        }
        if (!(std::fabs(bias) <= max_bias)) { // NaN is neither
            throw error(error_kind::option, "logit_bias: what is added to token " + std::to_string(token) + " must be from -1e9 to 1e9");
        }
        res.push_back({ token, bias });
    }
    for (llama_token token = 0; options.ignore_eos && token < n_vocab; ++token) {
        if (llama_vocab_is_eog(vocab, token)) {
            res.push_back({ token, -INFINITY });
        }
    }
    return res;
}

// null: it does not parse
llama_sampler * init_grammar(const llama_vocab * vocab, const sampling_options & options) {
    if (options.grammar_triggers.empty()) {
        return llama_sampler_init_grammar(vocab, options.grammar->c_str(), "root");
    }
    std::vector<const char *> triggers;
    for (const auto & trigger : options.grammar_triggers) {
        triggers.push_back(trigger.c_str());
    }
    try {
        return llama_sampler_init_grammar_lazy_patterns(vocab, options.grammar->c_str(), "root", triggers.data(), triggers.size(), nullptr, 0);
    } catch (const std::regex_error & err) {
        throw error(error_kind::option, std::string("grammar_triggers: not a regular expression: ") + err.what());
    }
}

} // namespace

llama_sampler_ptr make_sampler(const llama_vocab * vocab, const sampling_options & options, int32_t n_ctx) {
    check_options(options);

    llama_sampler_ptr chain(llama_sampler_chain_init(llama_sampler_chain_default_params()));

    const auto add = [&](llama_sampler * sampler) { llama_sampler_chain_add(chain.get(), sampler); };

    if (options.grammar) {
        const log_scope log(false);

        llama_sampler * grammar = init_grammar(vocab, options);
        if (!grammar) {
            throw error(error_kind::option, "the grammar is not valid GBNF: " + log.reason("it has no rule \"root\""));
        }
        add(grammar);
    }

    const auto biases = biases_of(vocab, options);
    if (!biases.empty()) {
        add(llama_sampler_init_logit_bias(llama_vocab_n_tokens(vocab), (int32_t) biases.size(), biases.data()));
    }

    // llama.cpp takes memory for all of them
    const int64_t last_n = options.repeat_last_n < 0 ? n_ctx : std::min<int64_t>(options.repeat_last_n, n_ctx);

    add(llama_sampler_init_penalties(llama_vocab_n_tokens(vocab), (int32_t) last_n, options.repeat_penalty,
            options.frequency_penalty, options.presence_penalty));

    if (options.temperature <= 0) {
        add(llama_sampler_init_greedy());
        return chain;
    }

    add(llama_sampler_init_top_k((int32_t) options.top_k));
    add(llama_sampler_init_typical(options.typical_p, 1));
    add(llama_sampler_init_top_p(options.top_p, 1));
    add(llama_sampler_init_min_p(options.min_p, 1));
    add(llama_sampler_init_temp(options.temperature));
    add(llama_sampler_init_dist((uint32_t) options.seed));

    return chain;
}

} // namespace pyfastv
