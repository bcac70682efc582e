#pragma once

#include "kernels/lanes.h"

namespace {

// x <= 0: within 2 units in the last place; 0 below -87
PYFASTV_INLINE floats exp_of_negative(floats x) {
    const ints   n = round_to_int(x*all(1.44269504f));
    const floats f = to_float(n);
    const floats r = fma(f, all(-1.42860677e-6f), fma(f, all(-0.693145752f), x));

    // exp(r) for |r| <= ln(2)/2: Taylor's series, whose next term is 2^-29 of it
    floats p = all(1.0f/5040);
    for (const float c : { 1.0f/720, 1.0f/120, 1.0f/24, 1.0f/6, 0.5f, 1.0f, 1.0f }) {
        p = fma(p, r, all(c));
    }
    return where_at_least(x, all(-87.0f), times_power_of_two(p, n));
}

} // namespace
