#pragma once

#include "products/products.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"

#include <cstdint>
#include <new>
#include <stdexcept>

namespace pyfastv {

// One graph of products of F32 matrices.
class products {
public:
    explicit products(size_t max_products) :
        ctx(ggml_init({ ggml_tensor_overhead()*(4*max_products + 8) + ggml_graph_overhead_custom(4*max_products + 8, false), nullptr, /* no_alloc */ true })),
        graph(ctx ? ggml_new_graph_custom(ctx.get(), 4*max_products + 8, false) : nullptr) {
        if (!ctx) {
            throw std::bad_alloc();
        }
    }

    ggml_context * context() const { return ctx.get(); }

    // [d, n]
    ggml_tensor * input(int64_t n, int64_t d) { return ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, d, n); }

    // rows [r0, r1) of a tensor that is an input
    ggml_tensor * rows(ggml_tensor * x, int64_t r0, int64_t r1) {
        return ggml_view_2d(ctx.get(), x, x->ne[0], r1 - r0, x->nb[1], r0*x->nb[1]);
    }

    // [rows of a, rows of b]; out[j][i] = a_i * b_j
    ggml_tensor * multiply(ggml_tensor * a, ggml_tensor * b) { return add(ggml_mul_mat(ctx.get(), a, b)); }

    ggml_tensor * add(ggml_tensor * x) {
        ggml_build_forward_expand(graph, x);
        return x;
    }

    void allocate(ggml_backend_t backend) {
        buffer.reset(ggml_backend_alloc_ctx_tensors(ctx.get(), backend));
        if (!buffer) {
            throw std::bad_alloc();
        }
    }

    void compute(ggml_backend_t backend) {
        switch (ggml_backend_graph_compute(backend, graph)) {
            case GGML_STATUS_SUCCESS:      return;
            case GGML_STATUS_ABORTED:      throw aborted();
            case GGML_STATUS_ALLOC_FAILED: throw std::bad_alloc();
            case GGML_STATUS_FAILED:       break;
        }
        throw std::runtime_error("a product of matrices could not be computed");
    }

private:
    ggml_context_ptr        ctx;
    ggml_cgraph *           graph;
    ggml_backend_buffer_ptr buffer;
};

} // namespace pyfastv
