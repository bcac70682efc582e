#pragma once

#include "kernels/attention_kernel.h"
#include "kernels/gelu_kernel.h"

#include "ggml.h"

#include <cstddef>
#include <cstdint>

namespace pyfastv::kernels {

// 32 columns of a row of activations, in 8 bits
struct activations {
    int8_t  q[32];
    float   scale;
    int32_t minus[2]; // see scaled_activations() and shared_activations()
    int32_t padding;
};

// 32 columns of 16 rows of weights. Byte 64c + 4r + i is column 4c + i of row r.
struct panel {
    uint8_t q[512];
    float   scale[2][16]; // of the first and the last 16 columns
    int32_t minimum[16];  // of types that have one: see formats.h
};

constexpr int panel_rows = 16;
constexpr int panel_cols = 32;

constexpr int most_tile_rows = 16; // of activations, of any kernel

// what the types are unpacked by: the block of the K types, eight of the others
constexpr int step_panels = 8;

// One type of weights, on one kind of CPU. Columns are counted in panels. Activations are in tiles of a few rows:
// of every 32 columns, those of the first row, of the second, ... Weights: n_panels is a multiple of block/32.
struct kernel {
    int block;      // columns of a block of the type
    int tile_rows;  // of multiply()
    int fused_rows; // of multiply_fused()
    int most_fused; // with more rows of activations than this, multiply() is faster

    // n_panels: a multiple of step_panels, but at the end of a row; a row of a tile of n_rows
    void (*quantize)(const float * x, int64_t n_panels, activations * out, int64_t n_rows);

    // weights: as layout.h has them
    void (*unpack)(const uint8_t * weights, int64_t n_panels, panel * out);

    // out[16] of every row of the tile += the panels times that row. stride: in floats. first: out is not read
    void (*multiply)(const panel * panels, int64_t n_panels, const activations * tile, int64_t n_rows, float * out, int64_t stride, bool first);

    // as unpack() and multiply(), to the bit, without panels in between; first is true
    void (*multiply_fused)(const uint8_t * weights, int64_t n_panels, const activations * tile, int64_t n_rows, float * out, int64_t stride);
};

// What there is for one kind of CPU.
struct cpu_kernels {
    const char *    name;
    const kernel *  (*of)(ggml_type type); // null: none for this type
    void            (*pack)(const uint8_t * const rows[panel_rows], size_t row_bytes, size_t step_bytes, uint8_t * out); // see layout.h
    attend_function attend;
    gelu_function   gelu;
};

const cpu_kernels & avx512_kernels();
const cpu_kernels & avxvnni_kernels();
const cpu_kernels & avx2_kernels();

} // namespace pyfastv::kernels
