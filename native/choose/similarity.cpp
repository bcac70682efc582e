#include "choose/similarity.h"

#include "choose/parts.h"
#include "products/parallel.h"
#include "products/products.h"

#include <algorithm>
#include <cmath>

namespace pyfastv {

bool similarity_matrix::is_of(const std::vector<std::shared_ptr<const float>> & others) const {
    // by owner: an address may have another row by now
    return std::equal(rows.begin(), rows.end(), others.begin(), others.end(), [](const auto & a, const auto & b) {
        return !a.owner_before(b) && !b.owner_before(a);
    });
}

std::vector<similar_part> similarity_matrix::view() const {
    const auto first = parts_of(rows.size());

    std::vector<similar_part> res;
    for (size_t p = 0; p < parts.size(); ++p) {
        res.push_back({ first[p + 1] - first[p], parts[p].data() });
    }
    return res;
}

similarity_matrix similarities(const std::vector<std::shared_ptr<const float>> & rows, int64_t n_embd, ggml_backend_t backend,
        const ledger_ptr & of) {
    const size_t m     = rows.size();
    const auto   first = parts_of(m);

    constexpr int64_t n_columns = 256; // that one thread takes at a time

    std::vector<double> mean(n_embd, 0.0);
    in_parallel((n_embd + n_columns - 1)/n_columns, backend, [&](size_t at) {
        const int64_t i0 = at*n_columns, i1 = std::min<int64_t>(n_embd, i0 + n_columns);
        for (const auto & row : rows) {
            for (int64_t i = i0; i < i1; ++i) {
                mean[i] += row.get()[i];
            }
        }
        for (int64_t i = i0; i < i1; ++i) {
            mean[i] /= std::max<size_t>(m, 1);
        }
    });

    similarity_matrix res;
    res.rows.assign(rows.begin(), rows.end());

    for (size_t p = 0; p + 1 < first.size(); ++p) {
        const size_t n = first[p + 1] - first[p];

        const auto write_centred = [&](int64_t r, float * to) {
            const float * row = rows[first[p] + r].get();
            for (int64_t i = 0; i < n_embd; ++i) {
                to[i] = (float) (row[i] - mean[i]);
            }
        };
        res.parts.emplace_back(n*n, 0.0f, of);
        cosines(n, n_embd, write_centred, backend, res.parts.back().data());
    }
    return res;
}

} // namespace pyfastv
