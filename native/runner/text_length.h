#pragma once

#include "llama.h"

#include <cstddef>
#include <cstdint>
#include <string>

namespace pyfastv {

// Throws error(context_length) if the context has not room for n_tokens of text.
void check_text_tokens(int64_t n_tokens, int64_t n_ctx);

// The same, from the text alone, for one so long that its tokens cannot fit, however many characters a token stands for:
// tokenizing it would take minutes and gigabytes. n_markers: bytes of it that stand for pictures.
void check_text_length(const llama_model * model, const std::string & text, size_t n_markers, int64_t n_ctx);

} // namespace pyfastv
