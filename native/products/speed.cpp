#include "products/speed.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <new>
#include <stdexcept>
#include <vector>

namespace pyfastv {
namespace {

constexpr int n_times = 2;

template <typename T> T * or_bad_alloc(T * pointer) {
    if (!pointer) {
        throw std::bad_alloc();
    }
    return pointer;
}

// some numbers from -1 to 1; speed does not depend on which
std::vector<float> numbers(int64_t n) {
    std::vector<float> res(n);
    uint32_t state = 1;
    for (auto & x : res) {
        state = state*1664525u + 1013904223u;
        x = (float) (state >> 8)/(1 << 23) - 1;
    }
    return res;
}

} // namespace

double product_seconds(ggml_type type, int64_t n_in, int64_t n_out, int64_t n_rows, int n_threads) {
    const ggml_backend_ptr backend(or_bad_alloc(ggml_backend_cpu_init()));
    ggml_backend_cpu_set_n_threads(backend.get(), n_threads);

    const ggml_context_ptr ctx(or_bad_alloc(ggml_init({ 3*ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, /* no_alloc */ true })));
    auto * weights = ggml_new_tensor_2d(ctx.get(), type, n_in, n_out);
    auto * rows    = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n_in, n_rows);
    auto * graph   = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(graph, ggml_mul_mat(ctx.get(), weights, rows));
    const ggml_backend_buffer_ptr memory(or_bad_alloc(ggml_backend_alloc_ctx_tensors(ctx.get(), backend.get())));

    const auto values = numbers(std::max(n_in*n_out, n_in*n_rows));
    ggml_quantize_chunk(type, values.data(), weights->data, 0, n_out, n_in, nullptr);
    std::copy_n(values.data(), n_in*n_rows, (float *) rows->data);

    double least = std::numeric_limits<double>::infinity();
    for (int i = 0; i < n_times; ++i) { // the first one wakes caches and clocks
        const auto begin = std::chrono::steady_clock::now();
        if (ggml_backend_graph_compute(backend.get(), graph) != GGML_STATUS_SUCCESS) {
            throw std::runtime_error("a product could not be computed");
        }
        least = std::min(least, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
    return least;
}

} // namespace pyfastv
