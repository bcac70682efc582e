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

// 2^x, x <= 0: within 2 units in the last place; 0 below -126
PYFASTV_INLINE floats power_of_two_of_negative(floats x) {
    const ints   n = round_to_int(x);
    const floats f = x - to_float(n);

    // for |f| <= 1/2: the polynomial of the fifth degree with the least relative error, 7.5e-8
    floats p = all(0.00132764715f);
    for (const float c : { 0.00967554137f, 0.0555071328f, 0.240221197f, 0.693146967f, 1.00000007f }) {
        p = fma(p, f, all(c));
    }
    return where_at_least(x, all(-126.0f), times_power_of_two(p, n));
}

} // namespace
