#pragma once

#include <string>

namespace pyfastv {

// Throws error(model), which names the path, unless a GGUF file can be read there: what llama.cpp says least clearly.
void check_gguf(const std::string & path);

} // namespace pyfastv
