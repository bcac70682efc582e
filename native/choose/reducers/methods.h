#pragma once

#include "products/products.h"
#include "choose/reducers/reduce.h"

#include <cstdint>
#include <vector>

// The parts of reduce(). n inputs of d numbers; indices ascending.
namespace pyfastv {

std::vector<int32_t> pick_stride  (int64_t n, size_t m);
std::vector<int32_t> pick_divprune(const visual_embeddings & in, size_t m, ggml_backend_t backend, const stop_fn & stopped);
std::vector<int32_t> pick_cdpruner(const visual_embeddings & in, size_t m, ggml_backend_t backend, const stop_fn & stopped);

// [n] cosine to the question
std::vector<float> relevance_of(const visual_embeddings & in);

std::vector<int32_t> pick_vidcom2(const visual_embeddings & in, size_t m);
std::vector<int32_t> pick_evs    (const visual_embeddings & in, double drop);
size_t               count_evs   (const std::vector<patch_grid> & slices, double drop);

// what was picked, as it is
reduced_embeddings take(const visual_embeddings & in, const std::vector<int32_t> & picked);

reduced_embeddings merge(const visual_embeddings & in, size_t m, bool scale, ggml_backend_t backend, const stop_fn & stopped);

// windows of a slice
struct window_grid {
    int32_t nx; // windows
    int32_t ny;
    int32_t side; // of a window; 0: as equal as can be

    // the first column (row) of window i of `windows` over `patches`; the first behind all for i = windows
    static int32_t begin(int32_t i, int32_t windows, int32_t patches, int32_t side);
};
window_grid windows_of_side (const patch_grid & slice, int32_t side);
window_grid windows_by_count(const patch_grid & slice, size_t m);

// which windows every slice gets under pool
std::vector<window_grid> pool_windows(const reducer & how, const std::vector<patch_grid> & slices);

reduced_embeddings pool       (const visual_embeddings & in, const std::vector<window_grid> & windows);
reduced_embeddings pool_frames(const visual_embeddings & in, int32_t frames, int32_t side);

// Shares a budget of m over parts in proportion to `want`, each at most its `most`: whole numbers, largest remainders first.
std::vector<size_t> share_out(size_t m, const std::vector<double> & want, const std::vector<size_t> & most);

// tokens of each slice
std::vector<size_t> sizes_of(const std::vector<patch_grid> & slices);

// [frame, row, column] of an input
std::array<float, 3> centre_of(const std::vector<patch_grid> & slices, int64_t i);

} // namespace pyfastv
