#include "runner/text_length.h"

#include "runner/errors.h"

#include <algorithm>
#include <cstring>
#include <set>

namespace pyfastv {
namespace {

struct vocab_facts {
    size_t longest   = 1;     // token, in bytes; as the vocabulary spells it, so never shorter than what it stands for
    bool   strips    = false; // there are special tokens that take the white space beside them
    bool   has_bytes = false; // there is a token for each byte
};

vocab_facts facts_of(const llama_vocab * vocab) {
    vocab_facts res;

    std::set<std::string> hex;   // "<0x0A>"
    std::set<std::string> chars; // of those that byte-level BPE writes for bytes: "!" to "~" and U+00A1 to U+0143 without U+00AD
    for (llama_token id = 0; id < llama_vocab_n_tokens(vocab); ++id) {
        const char * text   = llama_vocab_get_text(vocab, id);
        const size_t n      = strlen(text);
        const auto   lead   = (unsigned char) text[0];
        const bool   ascii  = n == 1 && lead > ' ' && lead < 0x7f;
        const bool   beyond = n == 2 && strcmp(text, "\xc2\xa1") >= 0 && strcmp(text, "\xc5\x83") <= 0 && strcmp(text, "\xc2\xad") != 0;

        res.longest = std::max(res.longest, n);
        res.strips |= (llama_vocab_get_attr(vocab, id) & (LLAMA_TOKEN_ATTR_LSTRIP | LLAMA_TOKEN_ATTR_RSTRIP)) != 0;
        if (ascii || beyond) {
            chars.insert(text);
        } else if (n == 6 && strncmp(text, "<0x", 3) == 0 && text[5] == '>') {
            hex.insert(text);
        }
    }
    res.has_bytes = chars.size() == 256 || hex.size() == 256;

    return res;
}

bool drops_spaces(const llama_model * model) {
    char name[16] = "";
    llama_model_meta_val_str(model, "tokenizer.ggml.model", name, sizeof(name));
    return strcmp(name, "whitespace") == 0;
}

// At least so many tokens stand for the text; 0 where a tokenizer may leave text out, or one token stand for any number of
// characters.
int64_t min_tokens(const llama_model * model, const std::string & text, size_t n_markers) {
    const auto * vocab = llama_model_get_vocab(model);
    const auto   type  = llama_vocab_type(vocab);
    if (type != LLAMA_VOCAB_TYPE_SPM && type != LLAMA_VOCAB_TYPE_RWKV && type != LLAMA_VOCAB_TYPE_BPE) {
        return 0;
    }
    const auto facts = facts_of(vocab);
    if (type == LLAMA_VOCAB_TYPE_BPE && (!facts.has_bytes || drops_spaces(model))) {
        return 0;
    }
    size_t n = text.size() - n_markers;
    if (facts.strips) {
        n -= std::count_if(text.begin(), text.end(), [](char c) { return c == ' ' || (c >= '\t' && c <= '\r'); });
    }
    return (n + facts.longest - 1) / facts.longest;
}

[[noreturn]] void refuse(const std::string & tokens, int64_t n_tokens, int64_t n_ctx) {
    error err(error_kind::context_length, "the prompt has " + tokens + ", but n_ctx is " + std::to_string(n_ctx) +
            ": use a larger n_ctx or a shorter prompt");
    err.n_tokens = n_tokens;
    err.n_ctx    = n_ctx;
    throw err;
}

} // namespace

void check_text_length(const llama_model * model, const std::string & text, size_t n_markers, int64_t n_ctx) {
    if ((int64_t) text.size() <= n_ctx) {
        return;
    }
    const int64_t n_tokens = min_tokens(model, text, n_markers);
    if (n_tokens > n_ctx) {
        refuse("at least " + std::to_string(n_tokens) + " tokens (" + std::to_string(text.size()) + " bytes of text)", n_tokens, n_ctx);
    }
    if (text.size() > INT32_MAX) {
        refuse("more than " + std::to_string(INT32_MAX) + " bytes", text.size(), n_ctx);
    }
}

void check_text_tokens(int64_t n_tokens, int64_t n_ctx) {
    if (n_tokens > n_ctx) {
        refuse(std::to_string(n_tokens) + " tokens of text", n_tokens, n_ctx);
    }
}

} // namespace pyfastv
