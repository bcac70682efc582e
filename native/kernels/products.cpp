#include "kernels/products.h"

#include "kernels/choice.h"
#include "kernels/kernel.h"
#include "kernels/work.h"

#include <algorithm>

namespace pyfastv::kernels {
namespace {

const kernel * kernel_of(ggml_type type) {
    const auto * kernels = chosen_kernels();
    return kernels ? kernels->of(type) : nullptr;
}

// a matrix of weights that a kernel can read
const kernel * kernel_of(const ggml_tensor & w) {
    const kernel * k = kernel_of(w.type);

    const bool fits = k && w.ne[2] == 1 && w.ne[3] == 1 && w.ne[0] % k->block == 0 && w.ne[1] >= panel_rows && w.nb[0] == ggml_type_size(w.type);
    return fits ? k : nullptr;
}

const kernel * kernel_of_product(const ggml_tensor & dst) {
    const auto & x = *dst.src[1];

    const bool fits = x.type == GGML_TYPE_F32 && x.nb[0] == sizeof(float) && dst.type == GGML_TYPE_F32 && ggml_is_contiguous(&dst);
    return fits ? kernel_of(*dst.src[0]) : nullptr;
}

// How the work memory is used: all activations, then panels for every thread. Its size does not depend on the group: there
// may be fewer threads in the end than were planned for.
struct plan {
    static constexpr int64_t most_group = 2;
    static constexpr size_t  large      = 4 << 20;

    int64_t n_rows;    // of activations
    int64_t n_blocks;  // of 32 columns
    int64_t n_panels;
    int64_t n_tiles;   // of activations, of about the same number of rows
    bool    fused;
    int64_t slice;     // blocks that are unpacked at a time: they and their activations stay in the caches
    int64_t group;     // panels that a thread takes at a time

    plan(const kernel & k, const ggml_tensor & dst, int n_threads) {
        n_rows    = ggml_nrows(&dst);
        n_blocks  = dst.src[0]->ne[0]/panel_cols;
        n_panels  = (dst.ne[0] + panel_rows - 1)/panel_rows;
        fused     = n_rows <= k.most_fused;
        n_tiles   = (n_rows - 1)/(fused ? k.fused_rows : k.tile_rows) + 1;
        slice     = std::min<int64_t>(n_blocks, 64);
        // A thread that reads the weights only once does it in order, and as long as it can: where it begins, they have not
        // been asked for. Of large ones it may leave some to the others.
        const int64_t n_parts = n_threads*(ggml_nbytes(dst.src[0]) < large ? 1 : 4);
        group = fused ? (n_panels - 1)/n_parts + 1 : std::clamp<int64_t>(n_panels/(8*n_threads), 1, most_group);
    }

    size_t activations_bytes() const { return n_rows*n_blocks*sizeof(activations); } // a multiple of 16
    size_t panels_bytes()      const { return fused ? 0 : most_group*slice*sizeof(panel); } // a multiple of 64

    struct tile {
        int64_t first, n_rows;
    };

    tile tile_at(int64_t i) const {
        const int64_t n = n_rows/n_tiles, n_larger = n_rows % n_tiles;
        return { i*n + std::min(i, n_larger), n + (i < n_larger) };
    }

    tile tile_of_row(int64_t row) const {
        const int64_t n = n_rows/n_tiles, n_larger = n_rows % n_tiles, in_larger = n_larger*(n + 1);
        return tile_at(row < in_larger ? row/(n + 1) : n_larger + (row - in_larger)/n);
    }

    // from block b on
    template <typename T>
    T * activations_of(T * a, const tile & t, int64_t b) const { return a + t.first*n_blocks + b*t.n_rows; }
};

static_assert(sizeof(activations) % 16 == 0 && sizeof(panel) % 64 == 0);

const float * row_of(const ggml_tensor & x, int64_t i) {
    const int64_t i1 = i % x.ne[1], i2 = i/x.ne[1] % x.ne[2], i3 = i/(x.ne[1]*x.ne[2]);

    return (const float *) ((const char *) x.data + i1*x.nb[1] + i2*x.nb[2] + i3*x.nb[3]);
}

// 16 rows of weights, and where their products go: fewer columns at the end of a matrix
struct target {
    weight_rows rows;
    float *     out;
    int64_t     stride;
    int64_t     n_cols;

    // panel i of the weights, from column `column` on
    target(const kernel & k, const ggml_tensor & dst, int64_t i, int64_t column) : out((float *) dst.data + i*panel_rows), stride(dst.ne[0]) {
        const auto & w = *dst.src[0];

        const auto * data = (const uint8_t *) w.data;
        const auto * at   = data + i*panel_rows*w.nb[1] + column/k.block*w.nb[0];

        n_cols = std::min<int64_t>(panel_rows, stride - i*panel_rows);
        for (int r = 0; r < panel_rows; ++r) {
            rows.at[r] = at + std::min<int64_t>(r, n_cols - 1)*w.nb[1];
        }
        rows.end = data + (w.ne[1] - 1)*w.nb[1] + w.ne[0]/k.block*w.nb[0];
    }

    // f(out, stride): what it reads and writes of 16 columns is there. begin, n_rows: of activations
    template <typename F>
    void write(int64_t begin, int64_t n_rows, F && f) const {
        float * to = out + begin*stride;
        if (n_cols == panel_rows) {
            f(to, stride);
            return;
        }
        constexpr int64_t most_rows = 16;

        float part[most_rows*panel_rows] = {};
        GGML_ASSERT(n_rows <= most_rows);
        for (int64_t r = 0; r < n_rows; ++r) {
            std::copy_n(to + r*stride, n_cols, part + r*panel_rows);
        }
        f(part, (int64_t) panel_rows);
        for (int64_t r = 0; r < n_rows; ++r) {
            std::copy_n(part + r*panel_rows, n_cols, to + r*stride);
        }
    }
};

// the panels [first, last) of the weights times all activations
void multiply_group(const kernel & k, const plan & p, const ggml_tensor & dst, const activations * a, panel * panels, int64_t first, int64_t last) {
    if (p.fused) {
        for (int64_t i = first; i < last; ++i) {
            const target to(k, dst, i, 0);
            for (int64_t m = 0; m < p.n_tiles; ++m) {
                const auto tile = p.tile_at(m);
                to.write(tile.first, tile.n_rows, [&](float * out, int64_t stride) {
                    k.multiply_fused(to.rows, p.n_blocks, p.activations_of(a, tile, 0), tile.n_rows, out, stride);
                });
            }
        }
        return;
    }
    for (int64_t b = 0; b < p.n_blocks; b += p.slice) {
        const int64_t n = std::min(p.slice, p.n_blocks - b);

        for (int64_t i = first; i < last; ++i) {
            k.unpack(target(k, dst, i, b*panel_cols).rows, n, panels + (i - first)*p.slice);
        }
        for (int64_t m = 0; m < p.n_tiles; ++m) {
            const auto tile = p.tile_at(m);
            for (int64_t i = first; i < last; ++i) {
                target(k, dst, i, 0).write(tile.first, tile.n_rows, [&](float * out, int64_t stride) {
                    k.multiply(panels + (i - first)*p.slice, n, p.activations_of(a, tile, b), tile.n_rows, out, stride, b == 0);
                });
            }
        }
    }
}

} // namespace
} // namespace pyfastv::kernels

using namespace pyfastv::kernels;

bool pyfastv_has_kernel(const ggml_tensor * weights) {
    return kernel_of(*weights) != nullptr;
}

size_t pyfastv_mul_mat_work_size(int n_threads, const ggml_tensor * dst) {
    const kernel * k = kernel_of_product(*dst);
    if (!k) {
        return 0;
    }
    const plan p(*k, *dst, n_threads);

    return p.activations_bytes() + n_threads*p.panels_bytes() + 2*alignment;
}

bool pyfastv_mul_mat(const ggml_compute_params * params, ggml_tensor * dst) {
    const kernel * k = params->use_ref ? nullptr : kernel_of_product(*dst);
    if (!k || params->wsize < pyfastv_mul_mat_work_size(params->nth, dst)) {
        return false;
    }
    const plan p(*k, *dst, params->nth);

    auto * a      = (activations *) align((char *) params->wdata);
    auto * panels = (panel *) (align((char *) a + p.activations_bytes()) + params->ith*p.panels_bytes());

    // by steps, not by rows: a single row is the work of all threads, too
    const int64_t n_steps = (p.n_blocks + step_panels - 1)/step_panels, n_all = p.n_rows*n_steps;
    for (int64_t i = n_all*params->ith/params->nth, end = n_all*(params->ith + 1)/params->nth; i < end; ) {
        const int64_t row = i/n_steps, step = i % n_steps;
        const int64_t n   = std::min(end - i, n_steps - step);
        const int64_t b   = step*step_panels, last = std::min((step + n)*step_panels, p.n_blocks);

        const auto tile = p.tile_of_row(row);
        k->quantize(row_of(*dst->src[1], row) + b*panel_cols, last - b, p.activations_of(a, tile, b) + row - tile.first, tile.n_rows);
        i += n;
    }

    share(params, (p.n_panels + p.group - 1)/p.group, [&](int64_t g) {
        multiply_group(*k, p, *dst, a, panels, g*p.group, std::min((g + 1)*p.group, p.n_panels));
    });
    return true;
}
