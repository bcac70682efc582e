#pragma once

#include "runner/options.h"

#include <cstddef>

namespace pyfastv {

// Throws error(model), which names the tensor to blame, if one of these numbers, which `what` computed, is none, or all are
// equal: what becomes of NaN where rows are quantized before they are multiplied. An answer made of them is nonsense.
void check_numbers(const float * values, size_t n, const char * what, const engine_options & options);

} // namespace pyfastv
