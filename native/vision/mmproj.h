#pragma once

#include <string>

namespace pyfastv {

// Throws std::runtime_error, which names the key or the tensor, for an mmproj file on which llama.cpp would end the process,
// write where it must not, take memory without bounds, or answer nonsense. What llama.cpp refuses itself is left to it. Encoders
// that are not in encoders.cpp are checked for what holds for all. Reads the header, and of each tensor the beginning.
void check_mmproj(const std::string & path);

} // namespace pyfastv
