#pragma once

#include "ggml.h"

#include <cstdint>
#include <memory>
#include <vector>

struct clip_ctx;
struct clip_image_f32;
struct clip_image_f32_batch;

namespace pyfastv {

// Of a picture some of whose units are left out (pyfastv_skip.h); units are numbered in raster order.
struct encoded_units {
    int32_t nx, ny;            // units that the picture has
    std::vector<int32_t> kept; // those that are encoded, ascending: at least one, and not all
};

// Of one picture, or slice, or of frames that are encoded as one. null: nothing is left out
std::shared_ptr<const encoded_units> choose_units(const clip_ctx * ctx, const clip_image_f32_batch & picture);

// units: null for all n of them
inline int32_t count_encoded(const encoded_units * units, int32_t n) { return units ? (int32_t) units->kept.size() : n; }

// of n_patches of the picture, those that are encoded
int32_t count_patches(const encoded_units * units, int32_t n_patches);

// The graph: what is encoded is taken once, behind the positions that are learned; [n_embd, patches of the units, 1], those of a
// unit side by side, units in raster order. x is a contiguous node, and returned if units is null.
//   take_units    x: [n_embd, patches] in that order
//   take_patches  x: [n_embd, patches in raster order and CLS, first or last], a unit: merge x merge; CLS is taken, too
ggml_tensor * take_units  (ggml_context * ctx0, ggml_tensor * x, const encoded_units * units);
ggml_tensor * take_patches(ggml_context * ctx0, ggml_tensor * x, const encoded_units * units, int32_t merge);

// Then, in place of what needs the grid: the patches of a unit behind each other (pixel shuffle), [n_embd*merge*merge, units], or
// their mean, [n_embd, units].
ggml_tensor * join_patches(ggml_context * ctx0, ggml_tensor * x, int32_t merge);
ggml_tensor * pool_patches(ggml_context * ctx0, ggml_tensor * x, int32_t merge);

// The inputs of a graph that took units or patches. True: all of its inputs; false: llama.cpp has to set the others, or all.
bool set_inputs(const clip_ctx * ctx, const clip_image_f32 & picture, ggml_cgraph * gf);

} // namespace pyfastv
