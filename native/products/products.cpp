#include "products/products.h"

#include "products/graph.h"
#include "products/parallel.h"

#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace pyfastv {

// eight sums side by side: the compiler may not reorder one
double dot(const float * a, const float * b, int64_t n) {
    constexpr int64_t width = 8;

    double  sums[width] = {};
    int64_t i           = 0;
    for (; i + width <= n; i += width) {
        for (int64_t w = 0; w < width; ++w) {
            sums[w] += (double) a[i + w]*b[i + w];
        }
    }
    for (; i < n; ++i) {
        sums[0] += (double) a[i]*b[i];
    }
    return std::accumulate(sums, sums + width, 0.0);
}

// of length 1, or 0; to: may be `from`
static void make_unit(const float * from, int64_t d, float * to) {
    const double square = dot(from, from, d);
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
    constexpr int64_t block   = 256;
    constexpr int64_t at_once = 32; // rows that one thread takes

    if (n == 0) {
        return;
    }

    // the matrix is symmetric: strips of rows, each up to the diagonal and the block around it, and their mirror images
    products graph((n + block - 1)/block);

    auto * x = graph.input(n, d);

    std::vector<ggml_tensor *> strips; // [columns, rows]
    for (int64_t i = 0; i < n; i += block) {
        const int64_t end = std::min(n, i + block);
        strips.push_back(graph.multiply(graph.rows(x, 0, end), graph.rows(x, i, end)));
    }

    graph.allocate(backend);

    // a CPU's tensors are plain memory
    in_parallel((n + at_once - 1)/at_once, backend, [&](size_t at) {
        for (int64_t i = at*at_once; i < std::min<int64_t>(n, (at + 1)*at_once); ++i) {
            float * row = (float *) x->data + i*d;
            write(i, row);
            make_unit(row, d, row);
        }
    });
    graph.compute(backend);

    in_parallel(strips.size(), backend, [&](size_t at) {
        const int64_t i         = at*block;
        const int64_t n_columns = strips[at]->ne[0], n_rows = strips[at]->ne[1];
        const float * values    = (const float *) strips[at]->data;

        for (int64_t r = 0; r < n_rows; ++r) {
            std::copy_n(values + r*n_columns, n_columns, res + (i + r)*n);
        }
        for (int64_t k = 0; k < i; ++k) {
            for (int64_t r = 0; r < n_rows; ++r) {
                res[k*n + i + r] = values[r*n_columns + k];
            }
        }
    });
}

} // namespace pyfastv
