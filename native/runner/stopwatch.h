#pragma once

#include "ggml.h"

#include <cstdint>

namespace pyfastv {

class stopwatch {
public:
    double ms() const { return (ggml_time_us() - t0)/1000.0; }

private:
    int64_t t0 = ggml_time_us();
};

} // namespace pyfastv
