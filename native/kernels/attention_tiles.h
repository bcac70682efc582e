#pragma once

// softmax(scale*Q*K^T + mask)*V of one head, block by block of keys with a running maximum (FlashAttention, Dao et al. 2022,
// algorithm 1), with both products in integers of 16 bits, twice as fast as F32. Every row of Q, K and V, and the weights of
// a row's block, have a scale of their own (as SageAttention has it for 8 bits, Zhang et al. 2025): so a row's result
// depends on nothing but the keys that it sees. Included by a translation unit for every kind of CPU.

#include "kernels/attention_kernel.h"
#include "kernels/exponential.h"
#include "kernels/lanes.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

namespace {

using pyfastv::kernels::head;
using pyfastv::kernels::head_block;
using pyfastv::kernels::head_memory;
using pyfastv::kernels::head_rows;

// rows of queries, and registers of keys or of columns of V, at a time: what the registers hold
constexpr int attention_rows = 4;
constexpr int attention_wide = n_lanes == 16 ? 4 : 2;
constexpr int attention_keys = attention_wide*n_lanes; // are skipped at a time

static_assert(head_block % attention_keys == 0);

// Scores are logarithms to base 2 of the weights.
constexpr float log2_e = 1.44269504f;

// As many keys' products of weights and values are added in 32 bits: 32*32767*2047 < 2^31.
constexpr int   attention_run = 32;
constexpr float most_weight   = 32767.0f;
constexpr float most_value    = 2047.0f;

// of queries and keys: d_k products are added in 32 bits
inline float most_of_scores(int64_t d_k) { return std::min(32767.0f, std::floor(std::sqrt(2147483647.0f/d_k) - 1.0f)); }

PYFASTV_INLINE void half_to_floats(const uint16_t * from, float * to, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) (from + i))));
    }
    for (; i < n; ++i) {
        to[i] = _cvtsh_ss(from[i]);
    }
}

inline float float_of(int32_t bits) {
    float res;
    memcpy(&res, &bits, sizeof(res));
    return res;
}

// n numbers times `factor`, rounded to the nearest
PYFASTV_INLINE void round_words(const float * x, float factor, int64_t n, int16_t * to) {
    for (int64_t i = 0; i < n; i += n_lanes) {
        store_words(to + i, round_to_int(load(x + i)*all(factor)));
    }
}

// A row of Q, K or V in 16 bits up to `most`, zeros behind it; -> its scale, which is not a number if one of the row is not.
PYFASTV_INLINE float load_row(const char * row, bool half, int64_t n, float most, const head_memory & m, int16_t * to) {
    const int64_t padded = head_memory::padded(n);
    if (half) {
        half_to_floats((const uint16_t *) row, m.row, n);
    } else {
        memcpy(m.row, row, n*sizeof(float));
    }
    std::fill(m.row + n, m.row + padded, 0.0f);

    // as integers, so that what is no number is the largest
    ints largest = all(0);
    for (int64_t i = 0; i < padded; i += n_lanes) {
        largest = larger(largest, bits_of(load(m.row + i)) & all(0x7fffffff));
    }
    const float size = float_of(largest_of(largest));
    if (!(size <= FLT_MAX)) {
        std::fill_n(to, padded, 0);
        return NAN;
    }
    round_words(m.row, size > 0.0f ? most/size : 0.0f, padded, to);
    return size/most;
}

// n keys and values from `first` on; zeros up to a whole number of attention_keys
PYFASTV_APART void load_block(const head & h, const head_memory & m, int64_t first, int64_t n) {
    const int64_t d_k  = head_memory::padded(h.d_k), d_v = head_memory::padded(h.d_v);
    const int64_t end  = (n + attention_keys - 1)/attention_keys*attention_keys;
    const float   most = most_of_scores(d_k);

    for (int64_t j = 0; j < end; j += n_lanes) {
        const uint8_t * rows[n_lanes];
        for (int64_t r = 0; r < n_lanes; ++r) {
            int16_t * row = m.rows + r*d_k;
            if (j + r < n) {
                m.key_scales[j + r] = load_row(h.k + (first + j + r)*h.stride_k, h.half, h.d_k, most, m, row);
            } else {
                std::fill_n(row, d_k, 0);
                m.key_scales[j + r] = 0.0f;
            }
            rows[r] = (const uint8_t *) row;
        }
        for (int64_t d = 0; d < d_k; d += 8) {
            ints four[4];
            transpose(rows, d*sizeof(int16_t), four);
            for (int c = 0; c < 4; ++c) {
                store((uint8_t *) (m.keys + j*d_k + (d + 2*c)*n_lanes), four[c]);
            }
        }
    }
    for (int64_t j = 0; j < end; j += 2) {
        int16_t * pair[2] = { m.rows, m.rows + d_v };
        for (int i = 0; i < 2; ++i) {
            if (j + i < n) {
                m.value_scales[j + i] = load_row(h.v + (first + j + i)*h.stride_v, h.half, h.d_v, most_value, m, pair[i]);
            } else {
                std::fill_n(pair[i], d_v, 0);
                m.value_scales[j + i] = 0.0f;
            }
        }
        for (int64_t d = 0; d < d_v; d += n_lanes) {
            store((uint8_t *) (m.values + j*d_v + 2*d), load_pairs(pair[0] + d, pair[1] + d));
        }
    }
}

// not memcpy(), as in dot()
typedef int32_t two_words __attribute__((may_alias));

// Out of line, so that compilers have all registers for the sums of these two loops.

// scores[r][attention_keys] of keys from `key` of the block on
template <int n_rows>
PYFASTV_APART void score(const head_memory & m, int64_t d_k, int64_t row, int64_t key) {
    const int64_t n_pairs = d_k/2;

    const auto *    queries = (const two_words *) (m.queries + row*d_k);
    const int16_t * keys    = m.keys + key*d_k;

    ints acc[n_rows][attention_wide];
    unroll<n_rows>([&](auto r) PYFASTV_LAMBDA { unroll<attention_wide>([&](auto i) PYFASTV_LAMBDA { acc[r][i] = all(0); }); });

    for (int64_t d = 0; d < n_pairs; ++d, keys += 2*n_lanes, ++queries) {
        ints k[attention_wide];
        unroll<attention_wide>([&](auto i) PYFASTV_LAMBDA { k[i] = load((const uint8_t *) (keys + i*n_pairs*2*n_lanes)); });
        unroll<n_rows>([&](auto r) PYFASTV_LAMBDA {
            const ints q = all(queries[r*n_pairs]);
            unroll<attention_wide>([&](auto i) PYFASTV_LAMBDA { acc[r][i] = dot_pairs(acc[r][i], k[i], q); });
        });
    }
    float * scores = m.scores + key;
    unroll<attention_wide>([&](auto i) PYFASTV_LAMBDA {
        const floats scales = load(m.key_scales + key + i*n_lanes);
        unroll<n_rows>([&](auto r) PYFASTV_LAMBDA {
            store(scores + r*head_block + i*n_lanes, to_float(acc[r][i])*scales*all(m.query_scales[row + r]));
        });
    });
}

// sums[r][wide*n_lanes] from column `column` on += the weights of the keys [first, last) times their values
template <int n_rows, int wide>
PYFASTV_APART void add_values(const head_memory & m, int64_t d_v, int64_t row, int64_t column, int64_t first, int64_t last) {
    const auto *    weights = (const two_words *) (m.weights + first);
    const int16_t * values  = m.values + first*d_v + 2*column;
    float *         sums    = m.sums + row*d_v + column;

    // the same runs of keys whatever the others of them are
    for (int64_t j = first; j < last; ) {
        const int64_t end = std::min((j/attention_run + 1)*attention_run, last);

        ints acc[n_rows][wide];
        unroll<n_rows>([&](auto r) PYFASTV_LAMBDA { unroll<wide>([&](auto i) PYFASTV_LAMBDA { acc[r][i] = all(0); }); });

        for (; j < end; j += 2, values += 2*d_v, ++weights) {
            ints v[wide];
            unroll<wide>([&](auto i) PYFASTV_LAMBDA { v[i] = load((const uint8_t *) (values + 2*i*n_lanes)); });
            unroll<n_rows>([&](auto r) PYFASTV_LAMBDA {
                const ints w = all(weights[r*head_block/2]);
                unroll<wide>([&](auto i) PYFASTV_LAMBDA { acc[r][i] = dot_pairs(acc[r][i], v[i], w); });
            });
        }
        unroll<n_rows>([&](auto r) PYFASTV_LAMBDA {
            const floats scale = all(m.weight_scales[r]);
            unroll<wide>([&](auto i) PYFASTV_LAMBDA {
                float * sum = sums + r*d_v + i*n_lanes;
                store(sum, fma(to_float(acc[r][i]), scale, load(sum)));
            });
        });
    }
}

template <int n_rows>
PYFASTV_INLINE void add_all_values(const head_memory & m, int64_t d_v, int64_t row, int64_t first, int64_t last) {
    int64_t column = 0;
    for (; column + attention_wide*n_lanes <= d_v; column += attention_wide*n_lanes) {
        add_values<n_rows, attention_wide>(m, d_v, row, column, first, last);
    }
    for (; column < d_v; column += n_lanes) {
        add_values<n_rows, 1>(m, d_v, row, column, first, last);
    }
}

// The scores of row r of a tile -> weights, times the scales of the values, relative to the largest of the block; with the
// sums so far brought to the new maximum. false: the row sees none of these keys.
PYFASTV_APART bool soften(const head_memory & m, int64_t d_v, int64_t row, int r, int64_t n) {
    float *   scores  = m.scores + r*head_block;
    int16_t * weights = m.weights + r*head_block;

    floats most = load(scores);
    for (int64_t j = n_lanes; j < n; j += n_lanes) {
        most = larger(most, load(scores + j));
    }
    const float of_block = largest_of(most), old = m.maximum[row], now = of_block > old ? of_block : old;
    if (of_block == -INFINITY) {
        std::fill_n(weights, n, 0);
        m.weight_scales[r] = 0.0f;

        floats nothing = all(0.0f); // or no number, which larger() may have lost
        for (int64_t j = 0; j < n; j += n_lanes) {
            nothing = nothing + where_at_least(load(scores + j), all(-FLT_MAX), load(scores + j));
        }
        m.total[row] += total_of(nothing);
        return false;
    }
    floats sum      = all(0.0f);
    ints   heaviest = all(0); // as integers, as in load_row()
    for (int64_t j = 0; j < n; j += n_lanes) {
        const floats x = load(scores + j) - all(of_block);
        const floats w = power_of_two_of_negative(x);
        // the values of keys that are not seen may be anything
        const floats scaled = where_at_least(x, all(-126.0f), w*load(m.value_scales + j));
        store(scores + j, scaled);
        sum      = sum + w;
        heaviest = larger(heaviest, bits_of(scaled));
    }
    const float weight = float_of(largest_of(heaviest)), factor = std::exp2(of_block - now);
    round_words(scores, weight > 0.0f ? most_weight/weight : 0.0f, n, weights);
    m.weight_scales[r] = weight/most_weight*factor;

    if (now > old) {
        const float scale = std::exp2(old - now);
        for (int64_t i = 0; i < d_v; i += n_lanes) {
            store(m.sums + row*d_v + i, load(m.sums + row*d_v + i)*all(scale));
        }
        m.total[row] *= scale;
        m.maximum[row] = now;
    }
    m.total[row] += total_of(sum)*factor;
    return true;
}

// F16, of the keys from `key` on
PYFASTV_INLINE const uint16_t * mask_of(const head & h, int64_t row, int64_t key) {
    return (const uint16_t *) (h.mask + row*h.stride_mask) + key;
}

// does any of the rows see any of n keys from `key` on?
inline bool any_seen(const head & h, int64_t row, int64_t n_rows, int64_t key, int64_t n) {
    constexpr uint16_t minus_infinity = 0xfc00;

    bool any = !h.mask;
    for (int64_t r = 0; r < n_rows && !any; ++r) {
        const uint16_t * mask = mask_of(h, row + r, key);

        uint16_t differs = 0; // no early end: compilers have a register of them compared at a time
        for (int64_t j = 0; j < n; ++j) {
            differs |= mask[j] ^ minus_infinity;
        }
        any = differs != 0;
    }
    return any;
}

// the mask of n keys; of those that it hides, what the scores are does not matter
PYFASTV_INLINE void add_mask(const uint16_t * mask, float * scores, int64_t n) {
    alignas(64) float values[attention_keys];
    half_to_floats(mask, values, n);
    std::fill(values + n, values + attention_keys, 0.0f);
    for (int j = 0; j < attention_keys; j += n_lanes) {
        const floats added = load(values + j);
        store(scores + j, fma(added, all(log2_e), where_at_least(added, all(-FLT_MAX), load(scores + j))));
    }
}

template <int n_rows>
PYFASTV_INLINE void attend_tile(const head & h, const head_memory & m, int64_t row, int64_t first, int64_t n) {
    const int64_t d_k = head_memory::padded(h.d_k), d_v = head_memory::padded(h.d_v);

    bool    seen[head_block/attention_keys];
    int64_t n_all = 0;
    for (int64_t j = 0; j < n; j += attention_keys, n_all += attention_keys) {
        const int64_t n_keys = std::min<int64_t>(attention_keys, n - j);
        const bool    any    = any_seen(h, row, n_rows, first + j, n_keys);

        seen[j/attention_keys] = any;
        if (any) {
            score<n_rows>(m, d_k, row, j);
        }
        for (int64_t r = 0; r < n_rows; ++r) {
            float * scores = m.scores + r*head_block + j;
            if (any && h.mask) {
                add_mask(mask_of(h, row + r, first + j), scores, n_keys);
            }
            const int64_t n_valid = any ? n_keys : 0;
            std::fill(scores + n_valid, scores + attention_keys, -INFINITY);
        }
    }
    bool any = false;
    for (int r = 0; r < n_rows; ++r) {
        any |= soften(m, d_v, row + r, r, n_all);
    }
    for (int64_t j = 0; any && j < n_all; ) {
        int64_t end = j;
        while (end < n_all && seen[end/attention_keys]) {
            end += attention_keys;
        }
        if (j < end) {
            add_all_values<n_rows>(m, d_v, row, j, end);
        }
        j = end + attention_keys;
    }
}

template <int n_rows = attention_rows>
void attend_rows(const head & h, const head_memory & m, int64_t row, int64_t n_left, int64_t first, int64_t n) {
    if (n_left >= n_rows) {
        attend_tile<n_rows>(h, m, row, first, n);
    } else if constexpr (n_rows > 1) {
        attend_rows<n_rows - 1>(h, m, row, n_left, first, n);
    }
}

// h.n_q <= head_rows
void attend(const head & h, char * work) {
    const head_memory m(h.d_k, h.d_v, work);
    const int64_t     d_k = head_memory::padded(h.d_k), d_v = head_memory::padded(h.d_v);

    for (int64_t r = 0; r < h.n_q; ++r) {
        m.query_scales[r] = h.scale*log2_e*load_row(h.q + r*h.stride_q, false, h.d_k, most_of_scores(d_k), m, m.queries + r*d_k);
    }
    std::fill_n(m.sums, h.n_q*d_v, 0.0f);
    std::fill_n(m.maximum, h.n_q, -INFINITY);
    std::fill_n(m.total, h.n_q, 0.0f);

    for (int64_t first = 0; first < h.n_kv; first += head_block) {
        const int64_t n = std::min<int64_t>(head_block, h.n_kv - first);
        if (!any_seen(h, 0, h.n_q, first, n)) {
            continue;
        }
        load_block(h, m, first, n);
        for (int64_t row = 0; row < h.n_q; row += attention_rows) {
            attend_rows(h, m, row, h.n_q - row, first, n);
        }
    }
    for (int64_t r = 0; r < h.n_q; ++r) {
        auto *      out     = (float *) (h.out + r*h.stride_out);
        const float inverse = m.total[r] == 0.0f ? 0.0f : 1.0f/m.total[r];
        for (int64_t d = 0; d < h.d_v; ++d) {
            out[d] = m.sums[r*d_v + d]*inverse;
        }
    }
}

} // namespace
