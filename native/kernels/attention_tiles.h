#pragma once

// softmax(scale*Q*K^T + mask)*V of one head, in F32, block by block of keys with a running maximum (FlashAttention, Dao et
// al. 2022, algorithm 1). Included by a translation unit for every kind of CPU.

#include "kernels/attention_kernel.h"
#include "kernels/exponential.h"
#include "kernels/lanes.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace {

using pyfastv::kernels::head;
using pyfastv::kernels::head_block;
using pyfastv::kernels::head_rows;
using pyfastv::kernels::padded_width;

// rows of queries, and registers of keys or of columns of V, at a time: what the registers hold
constexpr int attention_rows = 6;
constexpr int attention_wide = n_lanes == 16 ? 4 : 2;
constexpr int attention_keys = attention_wide*n_lanes; // are skipped at a time

static_assert(head_block % attention_keys == 0);

PYFASTV_INLINE void half_to_floats(const uint16_t * from, float * to, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) (from + i))));
    }
    for (; i < n; ++i) {
        to[i] = _cvtsh_ss(from[i]);
    }
}

// a row of K or V, zeros behind it
PYFASTV_INLINE void load_row(const char * row, bool half, int64_t n, float * to, int64_t padded) {
    if (half) {
        half_to_floats((const uint16_t *) row, to, n);
    } else {
        memcpy(to, row, n*sizeof(float));
    }
    std::fill(to + n, to + padded, 0.0f);
}

// 64-byte aligned parts of the work memory
struct head_memory {
    float * queries; // [head_rows][d_k], scaled
    float * sums;    // [head_rows][padded d_v]
    float * maximum; // [head_rows]
    float * total;   // [head_rows]
    float * keys;    // [head_block/n_lanes][padded d_k][n_lanes]
    float * values;  // [head_block][padded d_v]
    float * scores;  // [attention_rows][head_block]
    float * rows;    // [n_lanes][padded d_k]

    head_memory(const head & h, float * work) {
        const int64_t d_k = padded_width(h.d_k), d_v = padded_width(h.d_v);
        const auto take = [&](int64_t n) PYFASTV_LAMBDA { work += n; return work - n; };

        queries = take(head_rows*d_k);
        sums    = take(head_rows*d_v);
        maximum = take(head_rows);
        total   = take(head_rows);
        keys    = take(head_block*d_k);
        values  = take(head_block*d_v);
        scores  = take(attention_rows*head_block);
        rows    = take(n_lanes*d_k);
    }
};

// n keys and values from `first` on; zeros up to a whole number of attention_keys
void load_block(const head & h, const head_memory & m, int64_t first, int64_t n) {
    const int64_t d_k = padded_width(h.d_k), d_v = padded_width(h.d_v);

    for (int64_t j = 0; j < n; j += n_lanes) {
        const uint8_t * rows[n_lanes];
        for (int64_t r = 0; r < n_lanes; ++r) {
            float * row = m.rows + r*d_k;
            if (j + r < n) {
                load_row(h.k + (first + j + r)*h.stride_k, h.half, h.d_k, row, d_k);
            } else {
                std::fill(row, row + d_k, 0.0f);
            }
            rows[r] = (const uint8_t *) row;
        }
        for (int64_t d = 0; d < d_k; d += 4) {
            ints four[4];
            transpose(rows, d*sizeof(float), four);
            for (int c = 0; c < 4; ++c) {
                store((uint8_t *) (m.keys + j*d_k + (d + c)*n_lanes), four[c]);
            }
        }
    }
    for (int64_t j = 0; j < n; ++j) {
        load_row(h.v + (first + j)*h.stride_v, h.half, h.d_v, m.values + j*d_v, d_v);
    }
    for (int64_t j = n; j % attention_keys != 0; ++j) {
        if (j % n_lanes == 0) {
            std::fill_n(m.keys + j*d_k, d_k*n_lanes, 0.0f);
        }
        std::fill_n(m.values + j*d_v, d_v, 0.0f);
    }
}

// scores[r][attention_keys] of keys from `key` of the block on
template <int n_rows>
PYFASTV_INLINE void score(const head & h, const head_memory & m, int64_t row, int64_t key) {
    const int64_t d_k     = padded_width(h.d_k);
    const float * queries = m.queries + row*d_k;
    const float * keys    = m.keys + key*d_k;

    floats acc[n_rows][attention_wide];
    unroll<n_rows>([&](auto r) PYFASTV_LAMBDA { unroll<attention_wide>([&](auto i) PYFASTV_LAMBDA { acc[r][i] = all(0.0f); }); });

    for (int64_t d = 0; d < h.d_k; ++d) {
        floats k[attention_wide];
        unroll<attention_wide>([&](auto i) PYFASTV_LAMBDA { k[i] = load(keys + (i*d_k + d)*n_lanes); });
        unroll<n_rows>([&](auto r) PYFASTV_LAMBDA {
            const floats q = all(queries[r*d_k + d]);
            unroll<attention_wide>([&](auto i) PYFASTV_LAMBDA { acc[r][i] = fma(q, k[i], acc[r][i]); });
        });
    }
    unroll<n_rows>([&](auto r) PYFASTV_LAMBDA {
        unroll<attention_wide>([&](auto i) PYFASTV_LAMBDA { store(m.scores + r*head_block + key + i*n_lanes, acc[r][i]); });
    });
}

// sums[r][wide*n_lanes] from column `column` on += the weights of the keys [first, last) times their values
template <int n_rows, int wide>
PYFASTV_INLINE void add_values(const head & h, const head_memory & m, int64_t row, int64_t column, int64_t first, int64_t last) {
    const int64_t d_v  = padded_width(h.d_v);
    float *       sums = m.sums + row*d_v + column;

    floats acc[n_rows][wide];
    unroll<n_rows>([&](auto r) PYFASTV_LAMBDA { unroll<wide>([&](auto i) PYFASTV_LAMBDA { acc[r][i] = load(sums + r*d_v + i*n_lanes); }); });

    for (int64_t j = first; j < last; ++j) {
        floats v[wide];
        unroll<wide>([&](auto i) PYFASTV_LAMBDA { v[i] = load(m.values + j*d_v + column + i*n_lanes); });
        unroll<n_rows>([&](auto r) PYFASTV_LAMBDA {
            const floats w = all(m.scores[r*head_block + j]);
            unroll<wide>([&](auto i) PYFASTV_LAMBDA { acc[r][i] = fma(w, v[i], acc[r][i]); });
        });
    }
    unroll<n_rows>([&](auto r) PYFASTV_LAMBDA { unroll<wide>([&](auto i) PYFASTV_LAMBDA { store(sums + r*d_v + i*n_lanes, acc[r][i]); }); });
}

template <int n_rows>
PYFASTV_INLINE void add_all_values(const head & h, const head_memory & m, int64_t row, int64_t first, int64_t last) {
    const int64_t d_v = padded_width(h.d_v);

    int64_t column = 0;
    for (; column + attention_wide*n_lanes <= d_v; column += attention_wide*n_lanes) {
        add_values<n_rows, attention_wide>(h, m, row, column, first, last);
    }
    for (; column < d_v; column += n_lanes) {
        add_values<n_rows, 1>(h, m, row, column, first, last);
    }
}

// scores -> weights, with the sums so far brought to the new maximum; false: the row sees none of these keys
PYFASTV_INLINE bool soften(const head & h, const head_memory & m, int64_t row, float * scores, int64_t n) {
    floats most = load(scores);
    for (int64_t j = n_lanes; j < n; j += n_lanes) {
        most = larger(most, load(scores + j));
    }
    const float old = m.maximum[row], now = std::max(old, largest_of(most));
    if (now == -INFINITY) {
        std::fill_n(scores, n, 0.0f);
        return false;
    }
    floats sum = all(0.0f);
    for (int64_t j = 0; j < n; j += n_lanes) {
        const floats w = exp_of_negative(load(scores + j) + all(-now));
        store(scores + j, w);
        sum = sum + w;
    }
    if (now > old) {
        const int64_t d_v   = padded_width(h.d_v);
        const float   scale = std::exp(old - now);
        for (int64_t i = 0; i < d_v; i += n_lanes) {
            store(m.sums + row*d_v + i, load(m.sums + row*d_v + i)*all(scale));
        }
        m.total[row] *= scale;
        m.maximum[row] = now;
    }
    m.total[row] += total_of(sum);
    return true;
}

// F16, of the keys from `key` on
PYFASTV_INLINE const uint16_t * mask_of(const head & h, int64_t row, int64_t key) {
    return (const uint16_t *) (h.mask + row*h.stride_mask) + key;
}

// does any of the rows see any of n keys from `key` on?
PYFASTV_INLINE bool any_seen(const head & h, int64_t row, int64_t n_rows, int64_t key, int64_t n) {
    constexpr uint16_t minus_infinity = 0xfc00;

    bool any = !h.mask;
    for (int64_t r = 0; r < n_rows && !any; ++r) {
        const uint16_t * mask = mask_of(h, row + r, key);
        any = std::any_of(mask, mask + n, [](uint16_t value) PYFASTV_LAMBDA { return value != minus_infinity; });
    }
    return any;
}

// the mask of n keys
PYFASTV_INLINE void add_mask(const uint16_t * mask, float * scores, int64_t n) {
    alignas(64) float values[attention_keys];
    half_to_floats(mask, values, n);
    std::fill(values + n, values + attention_keys, 0.0f);
    for (int j = 0; j < attention_keys; j += n_lanes) {
        store(scores + j, load(scores + j) + load(values + j));
    }
}

template <int n_rows>
PYFASTV_INLINE void attend_tile(const head & h, const head_memory & m, int64_t row, int64_t first, int64_t n) {
    bool    seen[head_block/attention_keys];
    int64_t n_all = 0;
    for (int64_t j = 0; j < n; j += attention_keys, n_all += attention_keys) {
        const int64_t n_keys = std::min<int64_t>(attention_keys, n - j);
        const bool    any    = any_seen(h, row, n_rows, first + j, n_keys);

        seen[j/attention_keys] = any;
        if (any) {
            score<n_rows>(h, m, row, j);
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
    for (int64_t r = 0; r < n_rows; ++r) {
        any |= soften(h, m, row + r, m.scores + r*head_block, n_all);
    }
    for (int64_t j = 0; any && j < n_all; ) {
        int64_t end = j;
        while (end < n_all && seen[end/attention_keys]) {
            end += attention_keys;
        }
        if (j < end) {
            add_all_values<n_rows>(h, m, row, j, end);
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
void attend(const head & h, float * work) {
    const head_memory m(h, work);
    const int64_t     d_k = padded_width(h.d_k), d_v = padded_width(h.d_v);

    for (int64_t r = 0; r < h.n_q; ++r) {
        const auto * q = (const float *) (h.q + r*h.stride_q);
        for (int64_t d = 0; d < h.d_k; ++d) {
            m.queries[r*d_k + d] = q[d]*h.scale;
        }
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
