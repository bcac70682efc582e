#pragma once

#include "pyfastv_turbo.h"

#include <string>

namespace pyfastv {

// Both throw std::invalid_argument, which names the value and the limit.
pyfastv_turbo_params parse_turbo(const std::string & text);
void                 validate(const pyfastv_turbo_params & params);

std::string to_text(const pyfastv_turbo_params & params);

} // namespace pyfastv
