#include "products/products.h"

#include "products/graph.h"
#include "products/parallel.h"

#include "ggml.h"

#include <algorithm>
#include <cmath>

namespace pyfastv {
// of length 1, or 0; to: may be `from`
static void make_unit(const float * from, int64_t d, float * to) {
    double square = 0;
    for (int64_t k = 0; k < d; ++k) {
        square += (double) from[k]*from[k];
    }
    const auto scale = (float) (square > 0 ? 1/std::sqrt(square) : 0);
    for (int64_t k = 0; k < d; ++k) {
        to[k] = from[k]*scale;
    }
}

std::vector<float> unit_rows(const float * values, int64_t n, int64_t d) {
    std::vector<float> res(n*d);
    for (int64_t i = 0; i < n; ++i) {
        make_unit(values + i*d, d, res.data() + i*d);
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

void cosines(int64_t n, int64_t d, const write_row & write, ggml_backend_t backend, float * res) {
    constexpr int64_t block  = 256;
    constexpr int64_t n_rows = 32; // that one thread takes at a time

    if (n == 0) {
        return;
    }

    const int64_t n_blocks = (n + block - 1)/block;

    // the matrix is symmetric: blocks at and below the diagonal, and their mirror images
    products graph(n_blocks*(n_blocks + 1)/2);

    auto * x = graph.input(n, d);

    struct corner {
        int64_t       i, j;
        ggml_tensor * products; // [columns, rows]
    };
    std::vector<corner> corners;
    for (int64_t i = 0; i < n; i += block) {
        for (int64_t j = 0; j <= i; j += block) {
            corners.push_back({ i, j, graph.multiply(graph.rows(x, j, std::min(n, j + block)), graph.rows(x, i, std::min(n, i + block))) });
        }
    }

    graph.allocate(backend);

    // a CPU's tensors are plain memory
    in_parallel((n + n_rows - 1)/n_rows, backend, [&](size_t at) {
        for (int64_t i = at*n_rows; i < std::min<int64_t>(n, (at + 1)*n_rows); ++i) {
            float * row = (float *) x->data + i*d;
            write(i, row);
            make_unit(row, d, row);
        }
    });
    graph.compute(backend);

    in_parallel(corners.size(), backend, [&](size_t at) {
        const auto & c = corners[at];

        const int64_t n_columns = c.products->ne[0];
        const float * values    = (const float *) c.products->data;
        for (int64_t r = 0; r < c.products->ne[1]; ++r) {
            std::copy_n(values + r*n_columns, n_columns, res + (c.i + r)*n + c.j);
        }
        for (int64_t k = 0; c.j < c.i && k < n_columns; ++k) {
            for (int64_t r = 0; r < c.products->ne[1]; ++r) {
                res[(c.j + k)*n + c.i + r] = values[r*n_columns + k];
            }
        }
    });
}

} // namespace pyfastv
