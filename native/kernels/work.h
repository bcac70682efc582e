#pragma once

// How a node of ggml's graph is shared by its threads, and where its work memory begins.

#include "ggml-cpu-impl.h"

#include <cstddef>
#include <cstdint>

namespace pyfastv::kernels {

constexpr size_t alignment = 64;

template <typename T>
T * align(T * p) { return (T *) (((uintptr_t) p + alignment - 1)/alignment*alignment); }

// f(i) for every i below n, by whichever thread is free; begins when all threads have come
template <typename F>
void share(const ggml_compute_params * params, int64_t n, F && f) {
    if (params->ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);

    for (int64_t i = params->ith; i < n; i = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        f(i);
    }
}

} // namespace pyfastv::kernels
