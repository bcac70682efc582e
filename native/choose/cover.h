#pragma once

#include "choose/choose.h"

#include <cstdint>
#include <vector>

namespace pyfastv {

// pick=cover: the first n_kept tokens of the greedy cover. present: those that may be chosen, ascending, the rows of
// picture.similarity.
std::vector<int32_t> pick_cover(const picture_scores & picture, const std::vector<int32_t> & present, size_t n_kept);

} // namespace pyfastv
