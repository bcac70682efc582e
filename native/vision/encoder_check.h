#pragma once

#include "files/header.h"

namespace pyfastv {

// Does a vision encoder have what its row in encoders.cpp says? Throws std::runtime_error, which names the key or the
// tensor. For files whose keys have the right types. An encoder that has no row passes.
void check_encoder(const file_header & header, const file_limits & limits);

} // namespace pyfastv
