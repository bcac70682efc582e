#pragma once

#include <cstdint>

namespace pyfastv {

// Starts the worker threads of this thread's computations, once. Throws error(out_of_memory) where there is no room for
// them: OpenMP would end the process.
void start_workers(int32_t n_threads);

} // namespace pyfastv
