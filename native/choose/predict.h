#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

// Which units of a picture their neighbours predict, as lossless coding of pictures predicts pixels: pyfastv_skip.h has the rule.
// Pure functions on arrays.
namespace pyfastv {

// For each of nx*ny units, in raster order, the one that stands for it: itself, or one before it that stands for itself and from
// which none of its values differs by more than tau. units: [ny, nx, n_values]
std::vector<int32_t> predict_units(const uint8_t * units, int32_t nx, int32_t ny, size_t n_values, int32_t tau);

// those that stand for themselves, ascending
std::vector<int32_t> units_left(const std::vector<int32_t> & stands_for);

} // namespace pyfastv
