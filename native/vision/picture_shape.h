#pragma once

#include "mtmd.h"

#include <cstdint>

// Exported from libmtmd, for native/runner and for programs in Python.

// What a model's own preprocessor makes of a picture of some size.
struct pyfastv_picture_shape {
    int32_t n_tokens; // visual tokens, before Turbo and reducers
    int32_t n_slices; // that are encoded, the overview among them
    int32_t width;    // of the first of them, in pixels
    int32_t height;
};

extern "C" {

// Nothing is resized or encoded. enlarge: as below. False, and a line in the log: the preprocessor fails.
MTMD_API bool pyfastv_shape_of(const mtmd_context * ctx, uint32_t width, uint32_t height, bool enlarge, pyfastv_picture_shape * shape);

// May preprocessors that scale every picture to one size enlarge this one? At first they may.
MTMD_API void pyfastv_set_enlarge(mtmd_bitmap * bitmap, bool enlarge);

}
