#include "choose/similarity.h"

#include "products/products.h"

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

    std::vector<float> centred(m*n_embd);
    for (int64_t r = 0; r < m; ++r) {
        for (int64_t i = 0; i < n_embd; ++i) {
            centred[r*n_embd + i] = (float) (rows[r].get()[i] - mean[i]/m);
        }
    }

    auto values = cosines(centred.data(), m, n_embd, backend);
    return { std::move(rows), std::move(values) };
}

} // namespace pyfastv
