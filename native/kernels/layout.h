#pragma once

#include "kernels/kernel.h"

#include <algorithm>

namespace pyfastv::kernels {

// How the weights of a matrix lie in our buffers: as the kernels read them, 16 rows (a panel) behind the other. In a panel the
// rows are cut into steps of 256 columns, as many bytes as in the file; of a step the first 4 bytes of the 16 rows lie side by
// side, then the next 4, ... Where a block of the K types leaves 2 bytes, these do; where the last step leaves 2, a row has 2
// more. The last panel is filled up with its last row.
struct layout {
    int64_t n_rows;
    size_t  row_bytes;    // in the file
    size_t  step_bytes;
    size_t  packed_bytes; // of a row

    layout(ggml_type type, int64_t n_cols, int64_t n_rows) :
        n_rows(n_rows), row_bytes(ggml_row_size(type, n_cols)), step_bytes(ggml_row_size(type, 256)),
        packed_bytes(step_bytes % 4 == 0 ? (row_bytes + 3)/4*4 : row_bytes) {}

    int64_t n_panels()    const { return (n_rows + panel_rows - 1)/panel_rows; }
    size_t  panel_bytes() const { return panel_rows*packed_bytes; }
    size_t  bytes()       const { return n_panels()*panel_bytes(); }

    // rows of a panel: 16, but of the last
    int rows_of(int64_t panel) const { return std::min<int64_t>(panel_rows, n_rows - panel*panel_rows); }

    // n rows that lie `stride` apart
    void pack(const cpu_kernels & kernels, const uint8_t * rows, size_t stride, int n, uint8_t * out) const {
        const uint8_t * at[panel_rows];
        for (int r = 0; r < panel_rows; ++r) {
            at[r] = rows + std::min(r, n - 1)*stride;
        }
        kernels.pack(at, row_bytes, step_bytes, out);
    }

    // n rows of a panel, as they were, row_bytes apart
    void unpack(const uint8_t * panel, int n, uint8_t * out) const {
        for (size_t i = 0; i < row_bytes; ++i) {
            const size_t begin = i/step_bytes*step_bytes, at = i - begin, whole = std::min(step_bytes, packed_bytes - begin)/4*4;
            const size_t width = at < whole ? 4 : 2;
            for (int r = 0; r < n; ++r) {
                out[r*row_bytes + i] = panel[panel_rows*(begin + at/4*4) + r*width + at % 4];
            }
        }
    }
};

} // namespace pyfastv::kernels
