#include "runner/sampler.h"

#include "runner/errors.h"

#include <algorithm>

namespace pyfastv {

llama_sampler_ptr make_sampler(const llama_vocab * vocab, const sampling_options & options, int32_t n_ctx) {
    check_options(options);

    llama_sampler_ptr chain(llama_sampler_chain_init(llama_sampler_chain_default_params()));

    const auto add = [&](llama_sampler * sampler) { llama_sampler_chain_add(chain.get(), sampler); };

    if (options.grammar) {
        llama_sampler * grammar = llama_sampler_init_grammar(vocab, options.grammar->c_str(), "root");
        if (!grammar) {
            throw error(error_kind::option, "the grammar is not valid GBNF (or has no rule \"root\")");
        }
        add(grammar);
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
