#pragma once

#include "ggml.h"

#include <cstdint>

namespace pyfastv {

// Seconds that the CPU takes for the product of `n_rows` rows of activations with a matrix of this type, [n_in, n_out]: the
// least of several. The weights lie as they do for a vision encoder. Throws std::bad_alloc, std::runtime_error.
double product_seconds(ggml_type type, int64_t n_in, int64_t n_out, int64_t n_rows, int n_threads);

} // namespace pyfastv
