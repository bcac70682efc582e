#pragma once

// GELU, x*Phi(x), and the two approximations of it that models are trained with (Hendrycks and Gimpel 2016, section 2).
// llama.cpp looks them up by numbers of 16 bits. Included by a translation unit for every kind of CPU.

#include "kernels/exponential.h"
#include "kernels/gelu_kernel.h"

#include <algorithm>

namespace {

using pyfastv::kernels::gelu_kind;

// 1/(1 + exp(-x))
PYFASTV_INLINE floats sigmoid(floats x) {
    const floats e = exp_of_negative(larger(x, all(-1.0f)*x)*all(-1.0f));
    const floats s = all(1.0f)/(all(1.0f) + e);
    return where_at_least(x, all(0.0f), s) + where_at_least(all(-1.0f)*x, all(1e-38f), e*s);
}

// Abramowitz and Stegun 1964, 7.1.26: within 1.5e-7
PYFASTV_INLINE floats erf_of_positive(floats x) {
    const floats t = all(1.0f)/fma(all(0.3275911f), x, all(1.0f));

    floats p = all(1.061405429f);
    for (const float c : { -1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f }) {
        p = fma(p, t, all(c));
    }
    return fma(all(-1.0f)*p*t, exp_of_negative(all(-1.0f)*x*x), all(1.0f));
}

PYFASTV_INLINE floats gelu_of(gelu_kind kind, floats x) {
    switch (kind) {
        case gelu_kind::tanh: {
            const floats cube = fma(all(0.044715f)*x, x*x, x);
            return x*sigmoid(all(1.59576912f)*cube); // 2*sqrt(2/pi): tanh(u) = 2*sigmoid(2u) - 1
        }
        case gelu_kind::quick:
            return x*sigmoid(all(1.702f)*x);
        case gelu_kind::erf:
            break;
    }
    // 0.5*(x + |x|*erf(|x|/sqrt(2))): erf is odd
    const floats size = larger(x, all(-1.0f)*x);
    return all(0.5f)*fma(size, erf_of_positive(size*all(0.707106781f)), x);
}

void gelu(gelu_kind kind, const float * x, float * y, int64_t n) {
    int64_t i = 0;
    for (; i + n_lanes <= n; i += n_lanes) {
        store(y + i, gelu_of(kind, load(x + i)));
    }
    if (i < n) {
        float rest[n_lanes] = {};
        std::copy(x + i, x + n, rest);
        store(rest, gelu_of(kind, load(rest)));
        std::copy_n(rest, n - i, y + i);
    }
}

} // namespace
