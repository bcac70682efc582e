#include "kernels/products.h"

#include "kernels/buffer.h"
#include "kernels/choice.h"
#include "kernels/kernel.h"
#include "kernels/layout.h"
#include "kernels/work.h"

#include <algorithm>

namespace pyfastv::kernels {
namespace {

const kernel * kernel_of(ggml_type type) {
    const auto * kernels = chosen_kernels();
    return kernels ? kernels->of(type) : nullptr;
}

// null: not ours
const kernel * kernel_of_product(const ggml_tensor & dst) {
    if (dst.op != GGML_OP_MUL_MAT && dst.op != GGML_OP_MUL_MAT_ID) {
        return nullptr;
    }
    const auto & w = *dst.src[0], & x = *dst.src[1];

    const kernel * k = kernel_of(w.type);

    const bool part = w.view_src && (w.view_offs != 0 || !ggml_are_same_shape(&w, w.view_src));
    const bool fits = k && !(part && pyfastv_is_packed(w.view_src)) && w.ne[3] == 1 && (w.ne[2] == 1 || dst.op == GGML_OP_MUL_MAT_ID) && w.ne[0] % k->block == 0 && w.ne[1] >= panel_rows &&
                      w.nb[0] == ggml_type_size(w.type) && x.type == GGML_TYPE_F32 && x.nb[0] == sizeof(float) && dst.type == GGML_TYPE_F32 &&
                      ggml_is_contiguous(&dst);
    return fits ? k : nullptr;
}

struct tile {
    int64_t first, n_rows;
};

// A matrix of weights with the rows of activations that it is multiplied with: all of them, or those of an expert.
struct product {
    const uint8_t * weights;
    int64_t         first;   // place of its first row
    int64_t         n_rows;
    bool            fused;
    int64_t         n_tiles; // of activations, of about the same number of rows

    product(const kernel & k, const uint8_t * weights, int64_t first, int64_t n_rows) :
        weights(weights), first(first), n_rows(n_rows), fused(n_rows <= k.most_fused), n_tiles((n_rows - 1)/(fused ? k.fused_rows : k.tile_rows) + 1) {}

    tile tile_at(int64_t i) const {
        const int64_t n = n_rows/n_tiles, n_larger = n_rows % n_tiles;
        return { first + i*n + std::min(i, n_larger), n + (i < n_larger) };
    }

    tile tile_of(int64_t place) const {
        const int64_t row = place - first, n = n_rows/n_tiles, n_larger = n_rows % n_tiles, in_larger = n_larger*(n + 1);
        return tile_at(row < in_larger ? row/(n + 1) : n_larger + (row - in_larger)/n);
    }
};

int64_t expert_of(const ggml_tensor & dst, int64_t row) {
    const auto & ids = *dst.src[2];

    const int32_t expert = *(const int32_t *) ((const char *) ids.data + row % ids.ne[0]*ids.nb[0] + row/ids.ne[0]*ids.nb[1]);
    GGML_ASSERT(expert >= 0 && expert < dst.src[0]->ne[2]);
    return expert;
}

// The products of a node: one, or one of every expert that has rows. Their rows are one behind the other, and the number of
// a row among them is its place.
struct products {
    const ggml_tensor & dst;
    product *           all;
    int64_t             n        = 0;
    int32_t *           row_at   = nullptr; // of dst, for every place; null: places are rows
    int32_t *           place_of = nullptr; // for every row of dst

    static size_t bytes(const ggml_tensor & dst) {
        const int64_t n_experts = dst.src[0]->ne[2];
        return n_experts*sizeof(product) + (dst.op == GGML_OP_MUL_MAT_ID ? (2*ggml_nrows(&dst) + n_experts)*sizeof(int32_t) : 0);
    }

    products(const kernel & k, const ggml_tensor & dst, size_t matrix_bytes, char * memory) : dst(dst), all((product *) memory) {
        const auto & w = *dst.src[0];

        const auto *  data   = (const uint8_t *) w.data;
        const int64_t n_rows = ggml_nrows(&dst);
        if (dst.op == GGML_OP_MUL_MAT) {
            all[n++] = product(k, data, 0, n_rows);
            return;
        }
        row_at   = (int32_t *) (all + w.ne[2]);
        place_of = row_at + n_rows;

        int32_t * next = place_of + n_rows; // place of every expert's next row
        std::fill_n(next, w.ne[2], 0);
        for (int64_t row = 0; row < n_rows; ++row) {
            ++next[expert_of(dst, row)];
        }
        int32_t first = 0;
        for (int64_t i = 0; i < w.ne[2]; ++i) {
            const int32_t count = next[i];
            if (count > 0) {
                all[n++] = product(k, data + i*matrix_bytes, first, count);
            }
            next[i] = first;
            first += count;
        }
        for (int64_t row = 0; row < n_rows; ++row) {
            const int32_t place = next[expert_of(dst, row)]++;
            row_at[place] = row;
            place_of[row] = place;
        }
    }

    const product & at(int64_t place) const {
        return *(std::upper_bound(all, all + n, place, [](int64_t place, const product & m) { return place < m.first; }) - 1);
    }

    float * out_of(int64_t place) const { return (float *) dst.data + (row_at ? row_at[place] : place)*dst.ne[0]; }

    // f(place) for every place of a row of activations
    template <typename F>
    void each_place(int64_t row, F && f) const {
        if (!row_at) {
            f(row);
            return;
        }
        const int64_t n_used = dst.ne[1], n = dst.src[1]->ne[1]; // experts of a token, and its rows, which they take in turn
        for (int64_t i = row % n; i < n_used; i += n) {
            f(place_of[row/n*n_used + i]);
        }
    }
};

// what a thread has of the work memory, beside its products
struct memory {
    panel *   panels;
    uint8_t * packed; // of a panel of weights that do not lie in our buffers
};

// How the work memory is used: all activations, then for every thread its products and what `memory` has.
struct plan {
    static constexpr int64_t most_group = 2;
    static constexpr size_t  large      = 4 << 20;

    int64_t n_rows;   // of dst
    int64_t n_blocks; // of 32 columns
    int64_t n_panels; // of a matrix
    int64_t slice;    // blocks that are unpacked at a time: they and their activations stay in the caches
    layout  of_weights;
    bool    is_packed;
    size_t  products_bytes;
    size_t  panels_bytes; // a multiple of 64

    plan(const kernel & k, const ggml_tensor & dst) :
        of_weights(dst.src[0]->type, dst.src[0]->ne[0], dst.src[0]->ne[1]), is_packed(pyfastv_is_packed(dst.src[0])) {
        n_rows   = ggml_nrows(&dst);
        n_blocks = dst.src[0]->ne[0]/panel_cols;
        n_panels = of_weights.n_panels();
        slice    = std::min<int64_t>(n_blocks, 64);

        products_bytes = padded(products::bytes(dst));
        panels_bytes   = n_rows <= k.most_fused ? 0 : most_group*slice*sizeof(panel);
    }

    size_t activations_bytes() const { return padded(n_rows*n_blocks*sizeof(activations)); }
    size_t thread_bytes()      const { return products_bytes + panels_bytes + (is_packed ? 0 : padded(of_weights.panel_bytes())); }
    size_t matrix_bytes(const ggml_tensor & w) const { return is_packed ? of_weights.bytes() : w.nb[2]; }

    static size_t padded(size_t size) { return (size + alignment - 1)/alignment*alignment; }

    // panels that a thread takes at a time, of all matrices one behind the other
    int64_t group(const products & products, int n_threads) const {
        const int64_t n_all = products.n*n_panels;
        if (std::any_of(products.all, products.all + products.n, [](const product & m) { return !m.fused; })) {
            return std::clamp<int64_t>(n_all/(8*n_threads), 1, most_group);
        }
        // A thread that reads the weights only once does it in order, and as long as it can: where it begins, they have not
        // been asked for. Of large ones it may leave some to the others.
        const auto &  w       = *products.dst.src[0];
        const int64_t n_parts = n_threads*(products.n*w.ne[1]*w.nb[1] < large ? 1 : 4);
        return (n_all - 1)/n_parts + 1;
    }

    // from block b on
    template <typename T>
    T * activations_of(T * a, const tile & t, int64_t b) const { return a + t.first*n_blocks + b*t.n_rows; }
};

static_assert(sizeof(panel) % alignment == 0);

const float * row_of(const ggml_tensor & x, int64_t i) {
    const int64_t i1 = i % x.ne[1], i2 = i/x.ne[1] % x.ne[2], i3 = i/(x.ne[1]*x.ne[2]);

    return (const float *) ((const char *) x.data + i1*x.nb[1] + i2*x.nb[2] + i3*x.nb[3]);
}

// Every row of activations is rounded once, and copied to its other places. By steps, not by rows: a single row is the work
// of all threads, too.
void quantize(const ggml_compute_params * params, const kernel & k, const plan & p, const products & products, activations * a) {
    const auto & x = *products.dst.src[1];

    const int64_t n_steps = (p.n_blocks + step_panels - 1)/step_panels, n_all = ggml_nrows(&x)*n_steps;
    for (int64_t i = n_all*params->ith/params->nth, end = n_all*(params->ith + 1)/params->nth; i < end; ) {
        const int64_t row = i/n_steps, step = i % n_steps;
        const int64_t n   = std::min(end - i, n_steps - step);
        const int64_t b   = step*step_panels, last = std::min((step + n)*step_panels, p.n_blocks);

        const activations * from = nullptr;
        int64_t             from_stride = 0;
        products.each_place(row, [&](int64_t place) {
            const auto tile = products.at(place).tile_of(place);
            auto *     to   = p.activations_of(a, tile, b) + place - tile.first;
            if (!from) {
                k.quantize(row_of(x, row) + b*panel_cols, last - b, to, tile.n_rows);
                from        = to;
                from_stride = tile.n_rows;
                return;
            }
            for (int64_t j = 0; j < last - b; ++j) {
                to[j*tile.n_rows] = from[j*from_stride];
            }
        });
        i += n;
    }
}

// where the products of a panel go: fewer columns at the end of a matrix
struct target {
    const products & all;
    int64_t          column;
    int64_t          n_cols;

    target(const products & products, int64_t panel) :
        all(products), column(panel*panel_rows), n_cols(std::min<int64_t>(panel_rows, products.dst.ne[0] - column)) {}

    float * out_of(int64_t place) const { return all.out_of(place) + column; }

    // f(out, stride): what it reads and writes of 16 columns is there, of rows one behind the other
    template <typename F>
    void write(const tile & t, F && f) const {
        if (n_cols == panel_rows && (!all.row_at || t.n_rows == 1)) {
            f(out_of(t.first), all.dst.ne[0]);
            return;
        }
        float part[most_tile_rows*panel_rows] = {};
        for (int64_t r = 0; r < t.n_rows; ++r) {
            std::copy_n(out_of(t.first + r), n_cols, part + r*panel_rows);
        }
        f(part, (int64_t) panel_rows);
        for (int64_t r = 0; r < t.n_rows; ++r) {
            std::copy_n(part + r*panel_rows, n_cols, out_of(t.first + r));
        }
    }
};

// the blocks [b, b + n) of a panel of a product's weights, packed
const uint8_t * packed(const plan & p, const products & products, const product & m, int64_t panel, int64_t b, int64_t n, uint8_t * scratch) {
    const auto & w = *products.dst.src[0];
    if (p.is_packed) {
        return m.weights + panel*p.of_weights.panel_bytes() + b/step_panels*panel_rows*p.of_weights.step_bytes;
    }
    const auto * rows = m.weights + panel*panel_rows*w.nb[1] + ggml_row_size(w.type, b*panel_cols);
    layout(w.type, n*panel_cols, w.ne[1]).pack(*chosen_kernels(), rows, w.nb[1], p.of_weights.rows_of(panel), scratch);
    return scratch;
}

// the panels [first, last) of the weights times all rows of the product
void multiply_group(const kernel & k, const plan & p, const products & products, const product & m, const activations * a, memory own,
                    int64_t first, int64_t last) {
    if (m.fused) {
        for (int64_t i = first; i < last; ++i) {
            const auto * weights = packed(p, products, m, i, 0, p.n_blocks, own.packed);
            for (int64_t j = 0; j < m.n_tiles; ++j) {
                const auto tile = m.tile_at(j);
                target(products, i).write(tile, [&](float * out, int64_t stride) {
                    k.multiply_fused(weights, p.n_blocks, p.activations_of(a, tile, 0), tile.n_rows, out, stride);
                });
            }
        }
        return;
    }
    for (int64_t b = 0; b < p.n_blocks; b += p.slice) {
        const int64_t n = std::min(p.slice, p.n_blocks - b);

        for (int64_t i = first; i < last; ++i) {
            k.unpack(packed(p, products, m, i, b, n, own.packed), n, own.panels + (i - first)*p.slice);
        }
        for (int64_t j = 0; j < m.n_tiles; ++j) {
            const auto tile = m.tile_at(j);
            for (int64_t i = first; i < last; ++i) {
                target(products, i).write(tile, [&](float * out, int64_t stride) {
                    k.multiply(own.panels + (i - first)*p.slice, n, p.activations_of(a, tile, b), tile.n_rows, out, stride, b == 0);
                });
            }
        }
    }
}

} // namespace
} // namespace pyfastv::kernels

using namespace pyfastv::kernels;

bool pyfastv_has_kernel(const ggml_tensor * dst) {
    return kernel_of_product(*dst) != nullptr;
}

size_t pyfastv_mul_mat_work_size(int n_threads, const ggml_tensor * dst) {
    const kernel * k = kernel_of_product(*dst);
    if (!k) {
        return 0;
    }
    const plan p(*k, *dst);

    return p.activations_bytes() + n_threads*p.thread_bytes() + alignment;
}

bool pyfastv_mul_mat(const ggml_compute_params * params, ggml_tensor * dst) {
    const kernel * k = kernel_of_product(*dst);
    if (!k || (params->use_ref && !pyfastv_is_packed(dst->src[0]))) {
        return false;
    }
    GGML_ASSERT(params->wsize >= pyfastv_mul_mat_work_size(params->nth, dst));
    const plan p(*k, *dst);

    char * work = align((char *) params->wdata);
    char * own  = work + p.activations_bytes() + params->ith*p.thread_bytes();

    auto *         a      = (activations *) work;
    auto *         panels = (panel *) (own + p.products_bytes);
    const memory   memory   = { panels, (uint8_t *) panels + p.panels_bytes };
    const products products(*k, *dst, p.matrix_bytes(*dst->src[0]), own);

    quantize(params, *k, p, products, a);

    const int64_t n_all = products.n*p.n_panels, group = p.group(products, params->nth);
    share(params, (n_all + group - 1)/group, [&](int64_t g) {
        for (int64_t i = g*group, end = std::min(i + group, n_all); i < end; ) {
            const int64_t first = i % p.n_panels, last = std::min(first + end - i, p.n_panels);
            multiply_group(*k, p, products, products.all[i/p.n_panels], a, memory, first, last);
            i += last - first;
        }
    });
    return true;
}
