#pragma once

#include "ggml.h"

#include <cstdint>
#include <utility>

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

// does something when a scope ends, unless it is dismissed
template <typename F>
class on_exit {
public:
    explicit on_exit(F f) : f(std::move(f)) {}
    ~on_exit() {
        if (!dismissed) {
            f();
        }
    }

    on_exit(const on_exit &) = delete;

    void dismiss() { dismissed = true; }

private:
    F    f;
    bool dismissed = false;
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
