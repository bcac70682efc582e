#pragma once

#include "choose/choose.h"

#include <cstdint>
#include <vector>

namespace pyfastv {

// The grids that n tokens form in raster order. nx, ny: what they cover, in tokens or in any unit of the same proportions; 0:
// not known, a square number of tokens is then a square. Tokens that form no grid are one row; several grids: frames.
std::vector<patch_grid> grids_from(int32_t n, int32_t nx, int32_t ny);

} // namespace pyfastv
