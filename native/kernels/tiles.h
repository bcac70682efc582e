#pragma once

// The products themselves. Included by a translation unit for every kind of CPU.

#include "kernels/formats.h"
#include "kernels/kernel.h"
#include "kernels/lanes.h"

#include <algorithm>
#include <cstring>

namespace {

using pyfastv::kernels::activations;
using pyfastv::kernels::kernel;
using pyfastv::kernels::panel;
using pyfastv::kernels::panel_rows;

// rows of activations at a time: what the registers hold
constexpr int tile_rows  = n_lanes == 16 ? 12 : signed_bytes ? 4 : 6;
constexpr int fused_rows = n_lanes == 16 ? 6 : 2;
constexpr int most_fused = n_lanes == 16 ? 18 : 4;

static_assert(tile_rows <= pyfastv::kernels::most_tile_rows && fused_rows <= tile_rows);

//
// activations
//

// 32 numbers times `inverse`, rounded to the nearest, ties to even; -> sums of the first and of the last 16
inline void round_32(const float * x, float inverse, activations & out, int32_t sums[2]) {
    __m256i q[4];
    for (int i = 0; i < 4; ++i) {
        const __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + 8*i), _mm256_set1_ps(inverse));
        q[i] = _mm256_cvtps_epi32(_mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
    const __m256i words = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    _mm256_storeu_si256((__m256i *) out.q, _mm256_permutevar8x32_epi32(words, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));

    const auto total = [](__m256i s) PYFASTV_LAMBDA {
        __m128i t = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
        t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
        return _mm_cvtsi128_si32(_mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1)));
    };
    sums[0] = total(_mm256_add_epi32(q[0], q[1]));
    sums[1] = total(_mm256_add_epi32(q[2], q[3]));
}

template <int n>
inline float largest(const float * x) {
    __m256 most = _mm256_setzero_ps();
    for (int i = 0; i < n; i += 8) {
        most = _mm256_max_ps(most, _mm256_andnot_ps(_mm256_set1_ps(-0.0f), _mm256_loadu_ps(x + i)));
    }
    __m128 m = _mm_max_ps(_mm256_extractf128_ps(most, 1), _mm256_castps256_ps128(most));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

// A scale for every 32: ggml's quantize_row_q8_0, to the bit. minus[0]: what the offset of the weights takes away.
template <typename F>
void scaled_activations(const float * x, int64_t n_panels, activations * out, int64_t n_rows) {
    for (int64_t b = 0; b < n_panels; ++b, x += 32, out += n_rows) {
        const float most = largest<32>(x);

        int32_t sums[2];
        round_32(x, most != 0.0f ? 127.0f/most : 0.0f, *out, sums);

        out->scale    = _cvtsh_ss(_cvtss_sh(most/127.0f, 0));
        out->minus[0] = -F::offset*(sums[0] + sums[1]);
    }
}

// A scale for every 256, as the K types have it in ggml. minus: with an offset, what it takes away in the first and the
// last 16; with minimums, the sums of the block and the next one in minus[0], two of 16 bits, of every other block.
template <typename F>
void shared_activations(const float * x, int64_t n_panels, activations * out, int64_t n_rows) {
    for (int64_t b = 0; b < n_panels; b += step_panels, x += 256, out += step_panels*n_rows) {
        const float most = largest<256>(x), inverse = most != 0.0f ? 127.0f/most : 0.0f;

        int32_t sums[step_panels][2];
        for (int i = 0; i < step_panels; ++i) {
            round_32(x + 32*i, inverse, out[i*n_rows], sums[i]);
            out[i*n_rows].scale = most/127.0f;
        }
        for (int i = 0; i < step_panels; ++i) {
            if (F::has_min) {
                const auto sum = [&](int j) PYFASTV_LAMBDA { return (uint16_t) (sums[j][0] + sums[j][1]); };
                out[i*n_rows].minus[0] = i % 2 == 0 ? (int32_t) (sum(i) | (uint32_t) sum(i + 1) << 16) : 0;
            } else {
                out[i*n_rows].minus[0] = -F::offset*sums[i][0];
                out[i*n_rows].minus[1] = -F::offset*sums[i][1];
            }
        }
    }
}

//
// panels of weights
//

// an `out` of formats.h
struct to_panels {
    panel * p;
    int     lane;

    template <int b>
    PYFASTV_INLINE void block(const ints q[8], floats scale, floats last) {
        unroll<8>([&](auto c) PYFASTV_LAMBDA { store(p[b].q + 64*c + 4*lane, q[c]); });
        store(p[b].scale[0] + lane, scale);
        store(p[b].scale[1] + lane, last);
    }

    PYFASTV_INLINE void minimum(const ints pairs[4], floats scale) {
        unroll<4>([&](auto j) PYFASTV_LAMBDA { store((uint8_t *) (p[2*j].minimum + lane), pairs[j]); });
        store((float *) p[1].minimum + lane, scale);
    }
};

// f(step, first, n) for every step of a panel, of which the last may have fewer blocks, of n_lanes rows from `lane` on
template <typename F, typename Each>
PYFASTV_INLINE void each_step(const uint8_t * weights, int lane, int64_t n_panels, Each && each) {
    constexpr size_t bytes = F::bytes*256/F::block;

    const auto at = [&](int64_t first) PYFASTV_LAMBDA {
        const uint8_t * begin = weights + first/step_panels*panel_rows*bytes;
        return step{ begin + 4*lane, begin + panel_rows*(bytes - 2) + 2*lane };
    };
    int64_t first = 0;
    for (; first + step_panels <= n_panels; first += step_panels) {
        each(at(first), first, (int64_t) step_panels);
    }
    if (!F::shared && first < n_panels) {
        each(at(first), first, n_panels - first);
    }
}

template <typename F>
void unpack(const uint8_t * weights, int64_t n_panels, panel * out) {
    for (int lane = 0; lane < panel_rows; lane += n_lanes) {
        each_step<F>(weights, lane, n_panels, [&](const step & s, int64_t first, int64_t n) PYFASTV_LAMBDA {
            to_panels to = { out + first, lane };
            F::unpack(s, n, to);
        });
    }
}

void pack(const uint8_t * const rows[panel_rows], size_t row_bytes, size_t step_bytes, uint8_t * out) {
    for (size_t begin = 0; begin < row_bytes; begin += step_bytes) {
        const size_t n = std::min(step_bytes, row_bytes - begin);

        size_t i = 0;
        for (; i + 16 <= n; i += 16) {
            for (int lane = 0; lane < panel_rows; lane += n_lanes) {
                ints words[4];
                transpose(rows + lane, begin + i, words);
                unroll<4>([&](auto j) PYFASTV_LAMBDA { store(out + panel_rows*(begin + i + 4*j) + 4*lane, words[j]); });
            }
        }
        for (; i < n; i += 4) {
            const size_t width = i + 4 <= n || step_bytes % 4 == 0 ? 4 : 2;
            for (int r = 0; r < panel_rows; ++r) {
                uint8_t word[4] = {};
                memcpy(word, rows[r] + begin + i, std::min<size_t>(4, n - i));
                memcpy(out + panel_rows*(begin + i) + width*r, word, width);
            }
        }
    }
}

//
// products
//

// what a block of weights gives with one of activations, not yet with the scale of the activations
template <typename F>
PYFASTV_INLINE floats add_block(floats acc, const ints q[8], floats scale, floats last, const activations & x) {
    if constexpr (F::group == 16) {
        acc = fma(to_float(dot<F::bits, 4>(all(x.minus[0]), q,     x.q)),      scale, acc);
        return fma(to_float(dot<F::bits, 4>(all(x.minus[1]), q + 4, x.q + 16)), last,  acc);
    } else {
        return fma(to_float(dot<F::bits, 8>(all(F::offset ? x.minus[0] : 0), q, x.q)), scale, acc);
    }
}

// a: eight blocks of a row of a tile
template <int n_rows>
PYFASTV_INLINE floats add_minimum(floats acc, const ints pairs[4], floats scale, const activations * a) {
    ints sum = all(0);
    unroll<4>([&](auto j) PYFASTV_LAMBDA { sum = dot_pairs(sum, pairs[j], all(a[2*j*n_rows].minus[0])); });
    return fma(to_float(sum), scale, acc);
}

template <typename F, int n_rows>
void multiply_tile(const panel * panels, int64_t n_panels, const activations * a, float * out, int64_t stride, bool first, int lane) {
    floats acc[n_rows];
    unroll<n_rows>([&](auto r) PYFASTV_LAMBDA { acc[r] = F::shared || first ? all(0.0f) : load(out + r*stride); });

    // of the steps before: the registers are full, and the rows of `out` can be where they evict each other from the cache
    alignas(64) float total[n_rows*n_lanes];
    if (F::shared) {
        unroll<n_rows>([&](auto r) PYFASTV_LAMBDA { store(total + r*n_lanes, first ? all(0.0f) : load(out + r*stride)); });
    }

    for (int64_t b = 0; b < n_panels; ++b) {
        const panel & w = panels[b];

        ints q[8];
        unroll<8>([&](auto c) PYFASTV_LAMBDA { q[c] = load(w.q + 64*c + 4*lane); });
        const floats scale = load(w.scale[0] + lane);
        const floats last  = F::group == 16 ? load(w.scale[1] + lane) : scale;

        unroll<n_rows>([&](auto r) PYFASTV_LAMBDA {
            const activations & x = a[b*n_rows + r];
            if constexpr (F::shared) {
                acc[r] = add_block<F>(acc[r], q, scale, last, x);
            } else {
                const floats both = scale*all(x.scale);
                acc[r] = add_block<F>(acc[r], q, both, both, x);
            }
        });

        if (F::shared && b % step_panels == step_panels - 1) {
            const int64_t       begin = b - (step_panels - 1);
            const activations * x     = a + begin*n_rows;
            if constexpr (F::has_min) {
                ints pairs[4];
                unroll<4>([&](auto j) PYFASTV_LAMBDA { pairs[j] = load((const uint8_t *) (panels[begin + 2*j].minimum + lane)); });
                const floats of_minimums = load((const float *) panels[begin + 1].minimum + lane);

                unroll<n_rows>([&](auto r) PYFASTV_LAMBDA { acc[r] = add_minimum<n_rows>(acc[r], pairs, of_minimums, x + r); });
            }
            unroll<n_rows>([&](auto r) PYFASTV_LAMBDA {
                store(total + r*n_lanes, fma(acc[r], all(x[r].scale), load(total + r*n_lanes)));
                acc[r] = all(0.0f);
            });
        }
    }
    unroll<n_rows>([&](auto r) PYFASTV_LAMBDA { store(out + r*stride, F::shared ? load(total + r*n_lanes) : acc[r]); });
}

template <typename F, int n = tile_rows>
void multiply(const panel * panels, int64_t n_panels, const activations * tile, int64_t n_rows, float * out, int64_t stride, bool first) {
    if (n_rows == n) {
        for (int lane = 0; lane < panel_rows; lane += n_lanes) {
            multiply_tile<F, n>(panels, n_panels, tile, out + lane, stride, first, lane);
        }
    } else if constexpr (n > 1) {
        multiply<F, n - 1>(panels, n_panels, tile, n_rows, out, stride, first);
    }
}

// an `out` of formats.h
template <typename F, int n_rows>
struct to_products {
    const activations * a;
    floats              acc[n_rows];
    floats              part[n_rows];

    template <int b>
    PYFASTV_INLINE void block(const ints q[8], floats scale, floats last) {
        unroll<n_rows>([&](auto r) PYFASTV_LAMBDA {
            const activations & x = a[b*n_rows + r];
            if constexpr (F::shared) {
                part[r] = add_block<F>(b == 0 ? all(0.0f) : part[r], q, scale, last, x);
            } else {
                const floats both = scale*all(x.scale);
                acc[r] = add_block<F>(acc[r], q, both, both, x);
            }
        });
    }

    PYFASTV_INLINE void minimum(const ints pairs[4], floats scale) {
        unroll<n_rows>([&](auto r) PYFASTV_LAMBDA { part[r] = add_minimum<n_rows>(part[r], pairs, scale, a + r); });
    }

    PYFASTV_INLINE void finish() {
        if constexpr (F::shared) {
            unroll<n_rows>([&](auto r) PYFASTV_LAMBDA { acc[r] = fma(part[r], all(a[r].scale), acc[r]); });
        }
    }
};

template <typename F, int n_rows>
void multiply_fused_tile(const uint8_t * weights, int lane, int64_t n_panels, const activations * a, float * out, int64_t stride) {
    to_products<F, n_rows> to;
    unroll<n_rows>([&](auto r) PYFASTV_LAMBDA { to.acc[r] = all(0.0f); });

    each_step<F>(weights, lane, n_panels, [&](const step & s, int64_t first, int64_t n) PYFASTV_LAMBDA {
        to.a = a + first*n_rows;
        F::unpack(s, n, to);
        to.finish();
    });
    unroll<n_rows>([&](auto r) PYFASTV_LAMBDA { store(out + r*stride + lane, to.acc[r]); });
}

template <typename F, int n = fused_rows>
void multiply_fused(const uint8_t * weights, int64_t n_panels, const activations * tile, int64_t n_rows, float * out, int64_t stride) {
    if (n_rows == n) {
        for (int lane = 0; lane < panel_rows; lane += n_lanes) {
            multiply_fused_tile<F, n>(weights, lane, n_panels, tile, out, stride);
        }
    } else if constexpr (n > 1) {
        multiply_fused<F, n - 1>(weights, n_panels, tile, n_rows, out, stride);
    }
}

template <ggml_type type>
const kernel * make_kernel() {
    using F = format<type>;
    static const kernel res = { F::block, tile_rows, fused_rows, most_fused, F::shared ? shared_activations<F> : scaled_activations<F>,
                                unpack<F>, multiply<F>, multiply_fused<F> };
    return &res;
}

const kernel * kernel_of(ggml_type type) {
    switch (type) {
        case GGML_TYPE_Q4_0:   return make_kernel<GGML_TYPE_Q4_0>();
        case GGML_TYPE_Q5_0:   return make_kernel<GGML_TYPE_Q5_0>();
        case GGML_TYPE_Q8_0:   return make_kernel<GGML_TYPE_Q8_0>();
        case GGML_TYPE_IQ4_NL: return make_kernel<GGML_TYPE_IQ4_NL>();
        case GGML_TYPE_Q4_K:   return make_kernel<GGML_TYPE_Q4_K>();
        case GGML_TYPE_Q5_K:   return make_kernel<GGML_TYPE_Q5_K>();
        case GGML_TYPE_Q6_K:   return make_kernel<GGML_TYPE_Q6_K>();
        default:               return nullptr;
    }
}

} // namespace
