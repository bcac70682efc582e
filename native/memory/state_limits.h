#pragma once

#include <cstdint>

namespace pyfastv {

// call site in llama_io_read_i::read_string, before memory is taken: throws std::runtime_error if no string in a state has
// this size
void check_string(uint32_t size);

} // namespace pyfastv
