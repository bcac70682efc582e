#pragma once

#include "runner/prompt.h"

#include "llama.h"

#include <string>
#include <vector>

namespace pyfastv {

// Bytes [begin, end) of a text, ascending, as pieces of the prompt that it became; a piece that reaches over an edge is
// behind it. Only those behind a picture; none if the text cannot be found in the pieces.
std::vector<span> pieces_of(const std::vector<span> & bytes, const std::string & text, const std::string & marker,
        const std::vector<prompt_piece> & pieces, const llama_vocab * vocab);

} // namespace pyfastv
