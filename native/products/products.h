#pragma once

#include "ggml-backend.h"

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <vector>

// Products of rows of F32 numbers. `backend`: a CPU that computes them. Throws std::bad_alloc, aborted, std::runtime_error.
namespace pyfastv {

// the abort callback of the backend said stop
struct aborted : std::runtime_error {
    aborted() : std::runtime_error("stopped by the abort callback") {}
};

double dot(const float * a, const float * b, int64_t n);

// F32 [n, d] of length 1 each, or of length 0
std::vector<float> unit_rows(const float * values, int64_t n, int64_t d);

// F32 [n_a, n_b] products of rows of length d
std::vector<float> row_products(const float * a, int64_t n_a, const float * b, int64_t n_b, int64_t d, ggml_backend_t backend);

// writes the d numbers of row i; called by several threads
using write_row = std::function<void(int64_t i, float * to)>;

// res: F32 [n, n] cosines of rows
void cosines(int64_t n, int64_t d, const write_row & write, ggml_backend_t backend, float * res);

} // namespace pyfastv
