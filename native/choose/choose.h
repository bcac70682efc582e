#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pyfastv {

// How many of n visual tokens stay when the share `drop` leaves: round-half-even of n*(1 - drop), at least 1.
size_t count_kept(size_t n, float drop);

// FastV's rule (ECCV 2024, section 4.1): the count_kept(n, drop) tokens with the highest scores.
// Equal scores: the lower index first. Returns ascending indices.
std::vector<int32_t> choose_top_k(const float * scores, size_t n, float drop);

} // namespace pyfastv
