#include "runner/pixels.h"

#include <algorithm>
#include <cmath>
#include <utility>

// libmtmd's, added by third_party/patches/0005-mtmd-pixels.patch
const float * mtmd_image_tokens_get_pixels(const mtmd_context * ctx, const mtmd_image_tokens * image_tokens, size_t i,
        int32_t * nx, int32_t * ny, const float ** mean, const float ** std);

namespace pyfastv {

std::pair<int32_t, int32_t> size_of(const mtmd_context * vision, const mtmd_input_chunk * chunk) {
    int32_t       nx   = 0;
    int32_t       ny   = 0;
    const float * mean = nullptr;
    const float * dev  = nullptr;

    mtmd_image_tokens_get_pixels(vision, mtmd_input_chunk_get_tokens_image(chunk), 0, &nx, &ny, &mean, &dev);

    return { nx, ny };
}

std::vector<slice_pixels> pixels_of(const mtmd_context * vision, const mtmd_input_chunk * chunk) {
    std::vector<slice_pixels> res;

    const auto * tokens = mtmd_input_chunk_get_tokens_image(chunk);
    if (!tokens) {
        return res;
    }

    slice_pixels  slice;
    const float * mean = nullptr;
    const float * dev  = nullptr;

    while (const float * values = mtmd_image_tokens_get_pixels(vision, tokens, res.size(), &slice.width, &slice.height, &mean, &dev)) {
        const size_t n = (size_t) slice.width*slice.height*3;

        slice.rgb.resize(n);
        for (size_t i = 0; i < n; ++i) {
            const float value = (values[i]*dev[i % 3] + mean[i % 3])*255.0f;
            slice.rgb[i] = (uint8_t) std::lround(std::clamp(value, 0.0f, 255.0f));
        }
        res.push_back(slice);
    }

    return res;
}

} // namespace pyfastv
