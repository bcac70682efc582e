#pragma once

#include "pyfastv_turbo.h"

#include <cstdint>
#include <vector>

namespace pyfastv {

// The largest picture, in patches: size and place of a token share the 24 bits of a float in the graph.
constexpr int32_t turbo_max_patches = 4096;

struct block_range {
    int32_t first;
    int32_t last; // inclusive
};

// The blocks that merge, of n_blocks that run. Throws std::invalid_argument if there are not as many.
block_range merging_blocks(const pyfastv_turbo_params & params, int32_t n_blocks);

// How many tokens each step of each block merges, [n_blocks][steps of the block]: a step merges at most half. At least one
// token is left. Throws std::invalid_argument for more than turbo_max_patches.
std::vector<std::vector<int32_t>> merging_steps(const pyfastv_turbo_params & params, int32_t n_blocks, int32_t n_patches);

// patches less all steps
int32_t count_left(const std::vector<std::vector<int32_t>> & steps, int32_t n_patches);

} // namespace pyfastv
