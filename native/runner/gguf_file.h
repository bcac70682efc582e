#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pyfastv {

// Write to `out` a model that has the first n_layers layers of the model in `parts` (one file, or all parts of a split one
// in order), and everything of it that is outside of the layers: its shapes, types and weights, for measurements of
// speed. Throws error(model) if a file cannot be read or written, or is not a model with so many layers.
void write_excerpt(const std::vector<std::string> & parts, int32_t n_layers, const std::string & out);

} // namespace pyfastv
