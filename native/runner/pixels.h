#pragma once

#include "runner/prompt.h"

#include <cstdint>
#include <vector>

namespace pyfastv {

// What the vision encoder sees of one slice of a picture: resized, cut and padded, 3 bytes a pixel, rows from top to bottom.
struct slice_pixels {
    int32_t              width  = 0;
    int32_t              height = 0;
    std::vector<uint8_t> rgb; // [height, width, 3]
};

// All slices of a picture, in prompt order; empty for media without pixels.
std::vector<slice_pixels> pixels_of(const mtmd_context * vision, const mtmd_input_chunk * chunk);

} // namespace pyfastv
