#pragma once

#include "ggml-backend.h"

#include <cstdint>
#include <vector>

namespace pyfastv {

// Cosines between rows [n_embd] after their mean was subtracted: F32 [m, m]. Computed by ggml on `backend`, a CPU.
// Throws std::bad_alloc.
std::vector<float> similarities(const std::vector<const float *> & rows, int64_t n_embd, ggml_backend_t backend);

} // namespace pyfastv
