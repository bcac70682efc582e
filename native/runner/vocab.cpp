#include "runner/vocab.h"

#include <algorithm>

namespace pyfastv {

static std::string text_of(const llama_vocab * vocab, llama_token token) {
    return token == LLAMA_TOKEN_NULL ? "" : llama_vocab_get_text(vocab, token);
}

std::string piece_of(const llama_vocab * vocab, llama_token token, bool special) {
    std::string piece(32, '\0');
    int32_t n = llama_token_to_piece(vocab, token, piece.data(), piece.size(), 0, special);
    if (n < 0) {
        piece.resize(-n);
        n = llama_token_to_piece(vocab, token, piece.data(), piece.size(), 0, special);
    }
    piece.resize(std::max(n, 0));

    return piece;
}

std::vector<llama_token> tokens_named(const llama_vocab * vocab, const std::vector<std::string> & names) {
    std::vector<llama_token> res;
    for (const auto & name : names) {
        llama_token tokens[2];
        if (llama_tokenize(vocab, name.data(), (int32_t) name.size(), tokens, 2, /* add_special */ false, /* parse_special */ true) == 1) {
            res.push_back(tokens[0]);
        }
    }
    return res;
}

std::string bos_token(const llama_vocab * vocab) {
    return text_of(vocab, llama_vocab_bos(vocab));
}

std::string eos_token(const llama_vocab * vocab) {
    return text_of(vocab, llama_vocab_eos(vocab));
}

std::vector<control_token> control_tokens(const llama_vocab * vocab) {
    std::vector<control_token> res;
    if (llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE) {
        return res;
    }
    for (llama_token id = 0; id < llama_vocab_n_tokens(vocab); ++id) {
        const int attr = llama_vocab_get_attr(vocab, id);
        if (attr & (LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_UNKNOWN)) {
            res.push_back({ text_of(vocab, id), (attr & LLAMA_TOKEN_ATTR_LSTRIP) != 0, (attr & LLAMA_TOKEN_ATTR_RSTRIP) != 0 });
        }
    }
    return res;
}

std::string describe(const llama_model * model) {
    char buf[256];
    llama_model_desc(model, buf, sizeof(buf));
    return buf;
}

} // namespace pyfastv
