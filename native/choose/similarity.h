#pragma once

#include "ggml-backend.h"

#include <cstdint>
#include <memory>
#include <vector>

namespace pyfastv {

struct similarity_matrix {
    std::vector<std::shared_ptr<const float>> rows; // [m] what was compared; held, so that an address goes on telling a row
    std::vector<float> cosines;                     // [m, m]
};

// Cosines of rows of n_embd numbers, their mean subtracted: without that all rows of a model are alike.
// `backend`: a CPU that computes the matrix product. Throws std::bad_alloc.
similarity_matrix similarities(std::vector<std::shared_ptr<const float>> rows, int64_t n_embd, ggml_backend_t backend);

} // namespace pyfastv
