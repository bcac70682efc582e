#pragma once

#include "ggml-backend.h"

#include <cstddef>
#include <functional>

namespace pyfastv {

// f(i) for every i in [0, n), on the threads of a CPU backend. Rethrows what an f throws; throws as the products do
// (products/products.h).
void in_parallel(size_t n, ggml_backend_t backend, const std::function<void(size_t)> & f);

// Shall work be stopped? Asked often.
using stop_fn = std::function<bool()>;

// For work that several threads share: what `ask` says, which is asked by the thread that calls this alone. Empty: empty.
stop_fn for_threads(stop_fn ask);

} // namespace pyfastv
