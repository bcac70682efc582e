#pragma once

#include "llama.h"

#include <string>
#include <vector>

namespace pyfastv {

// the bytes of a token: a piece of UTF-8; of special ones none, unless they are spelled
std::string piece_of(const llama_vocab * vocab, llama_token token, bool special = false);

// Those of these texts that are one token each.
std::vector<llama_token> tokens_named(const llama_vocab * vocab, const std::vector<std::string> & names);

// as the vocabulary spells them; empty if it has none
std::string bos_token(const llama_vocab * vocab);
std::string eos_token(const llama_vocab * vocab);

// A token that is none of a text, by its name; and whether it takes the white space before and behind it.
struct control_token {
    std::string name;
    bool        strips_left;
    bool        strips_right;
};

// those that llama.cpp finds in a text only if it is told to
std::vector<control_token> control_tokens(const llama_vocab * vocab);

// llama.cpp's line about a model
std::string describe(const llama_model * model);

} // namespace pyfastv
