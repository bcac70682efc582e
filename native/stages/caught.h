#pragma once

#include "llama/call_sites.h"

#include "ggml.h"

#include <cstdint>

namespace pyfastv {

// Nothing is thrown into programs that know nothing of it: what a computation throws becomes a status, and an error in
// the log.

// llama_decode()'s return values
int32_t to_decode_result(ggml_status status);

} // namespace pyfastv
