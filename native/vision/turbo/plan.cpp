#include "vision/turbo/plan.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace pyfastv {

block_range merging_blocks(const pyfastv_turbo_params & params, int32_t n_blocks) {
    if (params.once) {
        return { n_blocks - 1, n_blocks - 1 };
    }
    if (params.first_layer < 0) {
        return { 0, std::max(0, (n_blocks + 1)/2 - 1) };
    }
    if (params.last_layer >= n_blocks) {
        throw std::invalid_argument("layers = " + std::to_string(params.first_layer) + "-" + std::to_string(params.last_layer) +
                ": this encoder runs " + std::to_string(n_blocks) + " blocks, the last is " + std::to_string(n_blocks - 1));
    }
    return { params.first_layer, params.last_layer };
}

void check_patches(int32_t n_patches) {
    if (n_patches > turbo_max_patches) {
        throw std::invalid_argument("the picture has " + std::to_string(n_patches) + " patches, Turbo merges at most " +
                std::to_string(turbo_max_patches) + ": use a smaller picture");
    }
}

std::vector<std::vector<int32_t>> merging_steps(const pyfastv_turbo_params & params, int32_t n_blocks, int32_t n_patches,
        int32_t n_windows) {
    check_patches(n_patches);

    const auto    range  = merging_blocks(params, n_blocks);
    const int64_t length = range.last - range.first + 1;
    const int64_t wanted = params.r > 0 ? params.r*length : (int64_t) std::nearbyint((double) n_patches*params.share);
    const int64_t total  = std::min<int64_t>(wanted, n_patches - 1);

    std::vector<std::vector<int32_t>> res(n_blocks);

    int32_t left = n_patches;
    for (int64_t b = 0; b < length; ++b) {
        // as even as integers can be
        int32_t now = (int32_t) (total*(b + 1)/length - total*b/length);

        while (now > 0) {
            const int32_t step = std::min(now, left/2 - n_windows);
            if (step < 1) {
                break;
            }
            res[range.first + b].push_back(step);
            now  -= step;
            left -= step;
        }
    }
    return res;
}

int32_t count_left(const std::vector<std::vector<int32_t>> & steps, int32_t n_patches) {
    for (const auto & block : steps) {
        for (const auto n : block) {
            n_patches -= n;
        }
    }
    return n_patches;
}

} // namespace pyfastv
