#include "choose/similarity.h"

#include "ggml-cpp.h"
#include "ggml.h"

#include <cmath>
#include <new>
#include <utility>

namespace pyfastv {

similarity_matrix similarities(std::vector<std::shared_ptr<const float>> rows, int64_t n_embd, ggml_backend_t backend) {
    const auto m = (int64_t) rows.size();

    std::vector<double> mean(n_embd, 0.0);
    for (const auto & row : rows) {
        for (int64_t i = 0; i < n_embd; ++i) {
            mean[i] += row.get()[i];
        }
    }

    std::vector<float> centred(m*n_embd); // and of length 1
    for (int64_t r = 0; r < m; ++r) {
        float * to = centred.data() + r*n_embd;

        double square = 0.0;
        for (int64_t i = 0; i < n_embd; ++i) {
            to[i] = (float) (rows[r].get()[i] - mean[i]/m);
            square += (double) to[i]*to[i];
        }
        const auto scale = (float) (square > 0.0 ? 1.0/std::sqrt(square) : 0.0);
        for (int64_t i = 0; i < n_embd; ++i) {
            to[i] *= scale;
        }
    }

    const ggml_context_ptr ctx(ggml_init({ ggml_tensor_overhead()*4 + ggml_graph_overhead(), nullptr, /* no_alloc */ true }));
    if (!ctx) {
        throw std::bad_alloc();
    }

    ggml_tensor * x   = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n_embd, m);
    ggml_tensor * res = ggml_mul_mat(ctx.get(), x, x);

    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(graph, res);

    const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), backend));
    if (!buffer) {
        throw std::bad_alloc();
    }

    std::vector<float> cosines(m*m);

    ggml_backend_tensor_set(x, centred.data(), 0, ggml_nbytes(x));
    if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) {
        throw std::bad_alloc();
    }
    ggml_backend_tensor_get(res, cosines.data(), 0, ggml_nbytes(res));

    return { std::move(rows), std::move(cosines) };
}

} // namespace pyfastv
