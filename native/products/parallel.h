#pragma once

#include "ggml-backend.h"

#include <cstddef>
#include <functional>

namespace pyfastv {

// f(i) for every i in [0, n), on the threads of a CPU backend. Rethrows what an f throws; throws as the products do
// (products/products.h).
void in_parallel(size_t n, ggml_backend_t backend, const std::function<void(size_t)> & f);

} // namespace pyfastv
