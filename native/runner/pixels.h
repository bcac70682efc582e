#pragma once

#include "runner/prompt.h"

#include <cstdint>
#include <utility>
#include <vector>

namespace pyfastv {

// What the vision encoder sees of one slice of a picture: resized, cut and padded, 3 bytes a pixel, rows from top to bottom.
struct slice_pixels {
    int32_t              width  = 0;
    int32_t              height = 0;
    std::vector<uint8_t> rgb; // [height, width, 3]
};

// Width and height of a picture's first slice, as the encoder sees it; 0: it has no pixels.
std::pair<int32_t, int32_t> size_of(const mtmd_context * vision, const mtmd_input_chunk * chunk);

// All slices of a picture, in prompt order; empty for media without pixels.
std::vector<slice_pixels> pixels_of(const mtmd_context * vision, const mtmd_input_chunk * chunk);

} // namespace pyfastv
