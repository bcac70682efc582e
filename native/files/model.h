#pragma once

#include <string>

namespace pyfastv {

// As check_mmproj() (mmproj.h), for a language model's file or a part of it.
void check_model(const std::string & path);

} // namespace pyfastv
