#pragma once

#include "runner/prompt.h"
#include "runner/slot.h"

#include "llama.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace pyfastv {

// What a slot holds, beside the keys and values: the beginning of a saved state.
struct slot_contents {
    std::string               schedule; // request_schedule::text
    std::vector<prompt_piece> evaluated;
    std::vector<slot::asked>  questions;

    llama_pos n_past()   const;
    int64_t   n_tokens() const;
};

using state_bytes = std::vector<uint8_t>;

state_bytes pack(const slot_contents & contents);

// Bytes from outside: what leads out of itself, out of the vocabulary or of n_ctx tokens throws error(option). n_read: how many
// bytes it was; what follows is the sequence, as llama.cpp writes it.
slot_contents unpack(const uint8_t * data, size_t size, int32_t n_vocab, int64_t n_ctx, size_t & n_read);

} // namespace pyfastv
