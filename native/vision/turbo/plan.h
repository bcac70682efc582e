#pragma once

#include "pyfastv_turbo.h"

#include <cstdint>
#include <vector>

namespace pyfastv {

// The largest picture, or slice, in patches: every block has a mask of that many rows and columns.
constexpr int32_t turbo_max_patches = 16384;

// Throws std::invalid_argument for more.
void check_patches(int32_t n_patches);

struct block_range {
    int32_t first;
    int32_t last; // inclusive
};

// The blocks that merge, of n_blocks that run. Throws std::invalid_argument if there are not as many.
block_range merging_blocks(const pyfastv_turbo_params & params, int32_t n_blocks);

// How many tokens each step of each block merges, [n_blocks][steps of the block]: a step merges at most half. At least one
// token is left. n_windows: of a picture whose tokens are merged inside of windows, 0: anywhere; a step then leaves an even more
// of each, which may have no odd beside it, and blocks may merge less than they should. Throws as check_patches().
std::vector<std::vector<int32_t>> merging_steps(const pyfastv_turbo_params & params, int32_t n_blocks, int32_t n_patches,
        int32_t n_windows = 0);

// patches less all steps
int32_t count_left(const std::vector<std::vector<int32_t>> & steps, int32_t n_patches);

} // namespace pyfastv
