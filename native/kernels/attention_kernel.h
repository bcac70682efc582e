#pragma once

#include <cstddef>
#include <cstdint>

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

constexpr int head_rows  = 192; // of queries at a time, at most
constexpr int head_block = 256; // keys at a time: they and the queries stay in the second cache

// a multiple of any number of lanes
constexpr int64_t padded_width(int64_t n) { return (n + 15)/16*16; }

// in floats: of attend()
constexpr int64_t head_work(int64_t d_k, int64_t d_v) {
    return (head_rows + head_block + 16)*padded_width(d_k) + (head_rows + head_block)*padded_width(d_v) + 2*head_rows + 8*head_block;
}

// work: head_work() floats, 64-byte aligned
using attend_function = void (*)(const head & h, float * work);

} // namespace pyfastv::kernels
