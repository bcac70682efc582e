#include "products/products.h"

#include "ggml-cpp.h"
#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <new>

namespace pyfastv {
namespace {

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

    // [d, n]
    ggml_tensor * input(int64_t n, int64_t d) { return ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, d, n); }

    // rows [r0, r1) of a tensor that is an input
    ggml_tensor * rows(ggml_tensor * x, int64_t r0, int64_t r1) {
        return ggml_view_2d(ctx.get(), x, x->ne[0], r1 - r0, x->nb[1], r0*x->nb[1]);
    }

    // [rows of a, rows of b]; out[j][i] = a_i * b_j
    ggml_tensor * multiply(ggml_tensor * a, ggml_tensor * b) {
        auto * res = ggml_mul_mat(ctx.get(), a, b);
        ggml_build_forward_expand(graph, res);
        return res;
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

} // namespace

std::vector<float> unit_rows(const float * values, int64_t n, int64_t d) {
    std::vector<float> res(n*d);
    for (int64_t i = 0; i < n; ++i) {
        const float * from = values + i*d;

        double square = 0;
        for (int64_t k = 0; k < d; ++k) {
            square += (double) from[k]*from[k];
        }
        const auto scale = (float) (square > 0 ? 1/std::sqrt(square) : 0);
        for (int64_t k = 0; k < d; ++k) {
            res[i*d + k] = from[k]*scale;
        }
    }
    return res;
}

std::vector<float> row_products(const float * a, int64_t n_a, const float * b, int64_t n_b, int64_t d, ggml_backend_t backend) {
    if (n_a == 0 || n_b == 0) {
        return {};
    }

    products graph(1);

    auto * x   = graph.input(n_a, d);
    auto * y   = graph.input(n_b, d);
    auto * res = graph.multiply(y, x);

    graph.allocate(backend);
    ggml_backend_tensor_set(x, a, 0, ggml_nbytes(x));
    ggml_backend_tensor_set(y, b, 0, ggml_nbytes(y));
    graph.compute(backend);

    std::vector<float> values(n_a*n_b);
    ggml_backend_tensor_get(res, values.data(), 0, ggml_nbytes(res));
    return values;
}

std::vector<float> cosines(const float * values, int64_t n, int64_t d, ggml_backend_t backend) {
    constexpr int64_t block = 512;

    if (n == 0) {
        return {};
    }

    const auto    unit     = unit_rows(values, n, d);
    const int64_t n_blocks = (n + block - 1)/block;

    // the matrix is symmetric: blocks at and below the diagonal, and their mirror images
    products graph(n_blocks*(n_blocks + 1)/2);

    auto * x = graph.input(n, d);

    std::vector<ggml_tensor *> results;
    for (int64_t i = 0; i < n; i += block) {
        for (int64_t j = 0; j <= i; j += block) {
            results.push_back(graph.multiply(graph.rows(x, j, std::min(n, j + block)), graph.rows(x, i, std::min(n, i + block))));
        }
    }

    graph.allocate(backend);
    ggml_backend_tensor_set(x, unit.data(), 0, ggml_nbytes(x));
    graph.compute(backend);

    std::vector<float> res(n*n), part;
    size_t at = 0;
    for (int64_t i = 0; i < n; i += block) {
        for (int64_t j = 0; j <= i; j += block) {
            const auto * tensor = results[at++];
            part.resize(ggml_nelements(tensor));
            ggml_backend_tensor_get(tensor, part.data(), 0, ggml_nbytes(tensor));

            for (int64_t r = 0; r < tensor->ne[1]; ++r) {
                const float * row = part.data() + r*tensor->ne[0];
                std::copy_n(row, tensor->ne[0], res.data() + (i + r)*n + j);
                for (int64_t c = 0; j < i && c < tensor->ne[0]; ++c) {
                    res[(j + c)*n + i + r] = row[c];
                }
            }
        }
    }
    return res;
}

} // namespace pyfastv
