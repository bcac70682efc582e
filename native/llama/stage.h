#pragma once

#include <cstdint>

namespace pyfastv {

// The layers that one graph runs: [il0, il1). The default is all of them, which is stock llama.cpp.
// It travels in llama_cparams, so that a graph is reused only for the stage it was built for.
struct stage {
    static constexpr int32_t all = INT32_MAX;

    int32_t il0 = 0;
    int32_t il1 = all;

    // of a stage that ends early: the attention of so many rows of the ubatch, the last ones, is read at its last layer; `all`:
    // of every row
    int32_t n_scored         = 0;
    int32_t n_scored_no_rope = 0; // attention without rotary positions

    bool partial()        const { return il0 > 0 || il1 != all; }
    bool ends_early()     const { return il1 != all; }
    bool runs(int32_t il) const { return il0 <= il && il < il1; }

    bool operator==(const stage & other) const {
        return il0 == other.il0 && il1 == other.il1 && n_scored == other.n_scored && n_scored_no_rope == other.n_scored_no_rope;
    }
};

} // namespace pyfastv
