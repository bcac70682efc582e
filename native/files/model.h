#pragma once

#include <cstdint>
#include <string>

namespace pyfastv {

// As check_mmproj() (mmproj.h), for a language model's file. Returns how many files the model is split into. Of the second and
// later ones only the tensors are checked: the first has the keys.
uint32_t check_model(const std::string & path);

} // namespace pyfastv
