#pragma once

#include "runner/prompt.h"

#include "mtmd.h"

#include <cstdint>
#include <string>
#include <vector>

namespace pyfastv {

// Turbo in a vision encoder: the language of pyfastv_turbo_parse(), empty for none. vision may be null if there is none.
// Throws error(option), error(unsupported).
void attach_turbo(mtmd_context * vision, const std::string & spec);

// Of the piece, which was encoded last: the patch whose position each of its tokens has; empty: all patches are there, or
// the tokens are numbered anew.
std::vector<int32_t> turbo_places(const mtmd_context * vision, const prompt_piece & piece);

} // namespace pyfastv
