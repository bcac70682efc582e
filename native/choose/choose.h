#pragma once

#include "pyfastv.h"

#include <cstddef>
#include <cstdint>
#include <vector>

// Which visual tokens of one picture stay. Pure functions: scores in, ascending indices out.
// Of equal scores the lower index comes first.
namespace pyfastv {

// How many of n visual tokens stay when the share `drop` leaves: round-half-even of n*(1 - drop), at least 1.
size_t count_kept(size_t n, float drop);

// FastV's rule (ECCV 2024, section 4.1): the highest scores.
std::vector<int32_t> choose_top_k(const float * scores, size_t n, float drop);

// Every window x window part of the patch grid keeps its share of the highest scores, so that no part of the picture
// goes unseen. Windows at the right and lower edge may be smaller. The token of rank r in a window of s tokens comes
// before others by (r + 0.5)/s, then by its score. A picture whose tokens form no square is taken as one row.
std::vector<int32_t> choose_window(const float * scores, size_t n, float drop, int32_t window);

// Evenly spaced: the i-th of m is floor((i + 0.5)*n/m).
std::vector<int32_t> choose_uniform(size_t n, float drop);

std::vector<int32_t> choose(const float * scores, size_t n, float drop, pyfastv_pick pick, int32_t window);

} // namespace pyfastv
