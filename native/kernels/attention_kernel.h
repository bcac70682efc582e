#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace pyfastv::kernels {

// Rows of queries of one head, with all its keys and values. Strides in bytes.
struct head {
    const char * q; // F32 [n_q, d_k]
    const char * k; // F16 or F32 [n_kv, d_k]
    const char * v; // as k [n_kv, d_v]
    const char * mask; // F16 [n_q, n_kv], added to the scores; may be null
    char *       out; // F32 [n_q, d_v]
    size_t       stride_q, stride_k, stride_v, stride_mask, stride_out;
    int64_t      n_q, n_kv, d_k, d_v;
    bool         half; // k and v are F16
    float        scale;
};

constexpr int head_rows  = 384; // of queries at a time, at most
constexpr int head_block = 256; // keys at a time: they and the queries stay in the second cache

// 64-byte aligned parts of a thread's work memory. Numbers of 16 bits have a scale for every row of Q, K and V.
struct head_memory {
    float *   sums;          // [head_rows][padded d_v]
    float *   maximum;       // [head_rows]
    float *   total;         // [head_rows]
    float *   query_scales;  // [head_rows]
    float *   key_scales;    // [head_block]
    float *   value_scales;  // [head_block]
    float *   scores;        // [most_lanes][head_block]
    float *   weight_scales; // [most_lanes], of a tile's rows
    float *   row;           // [padded d]
    int16_t * queries;       // [head_rows][padded d_k]
    int16_t * keys;          // pairs of columns [head_block/lanes][padded d_k/2][lanes][2]
    int16_t * values;        // pairs of keys [head_block/2][padded d_v][2]
    int16_t * weights;       // [most_lanes][head_block]
    int16_t * rows;          // [most_lanes][padded d]
    size_t    bytes;

    static constexpr int most_lanes = 16;

    // a multiple of any number of lanes
    static constexpr int64_t padded(int64_t n) { return (n + most_lanes - 1)/most_lanes*most_lanes; }

    // work: null where only the bytes are asked for
    head_memory(int64_t d_k, int64_t d_v, char * work) : bytes(0) {
        const auto take = [&](auto *& p, int64_t n) {
            p = (std::remove_reference_t<decltype(p)>) ((uintptr_t) work + bytes);
            bytes += (n*sizeof(*p) + 63)/64*64;
        };
        const int64_t widest = padded(d_k > d_v ? d_k : d_v);

        take(sums, head_rows*padded(d_v));
        take(maximum, head_rows);
        take(total, head_rows);
        take(query_scales, head_rows);
        take(key_scales, head_block);
        take(value_scales, head_block);
        take(scores, most_lanes*head_block);
        take(weight_scales, most_lanes);
        take(row, widest);
        take(queries, head_rows*padded(d_k));
        take(keys, head_block*padded(d_k));
        take(values, head_block*padded(d_v));
        take(weights, most_lanes*head_block);
        take(rows, most_lanes*widest);
    }
};

// work: 64-byte aligned, of as many bytes as head_memory takes
using attend_function = void (*)(const head & h, char * work);

} // namespace pyfastv::kernels
