#pragma once

#include "ggml.h"

#include <cstdint>

namespace pyfastv {

// sets a value for as long as a scope lasts
template <typename T>
class scoped_value {
public:
    scoped_value(T & target, T value) : target(target), saved(target) { target = value; }
    ~scoped_value() { target = saved; }

    scoped_value(const scoped_value &) = delete;

private:
    T & target;
    T   saved;
};

class timer {
public:
    explicit timer(double & ms) : ms(ms), t0(ggml_time_us()) {}
    ~timer() { ms += (ggml_time_us() - t0)/1000.0; }

private:
    double & ms;
    int64_t  t0;
};

} // namespace pyfastv
