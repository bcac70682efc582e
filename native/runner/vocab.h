#pragma once

#include "llama.h"

#include <string>

namespace pyfastv {

// the bytes of a token: a piece of UTF-8; of special ones none, unless they are spelled
std::string piece_of(const llama_vocab * vocab, llama_token token, bool special = false);

// as the vocabulary spells them; empty if it has none
std::string bos_token(const llama_vocab * vocab);
std::string eos_token(const llama_vocab * vocab);

// llama.cpp's line about a model
std::string describe(const llama_model * model);

} // namespace pyfastv
