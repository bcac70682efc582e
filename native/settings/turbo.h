#pragma once

#include "pyfastv_turbo.h"

#include <string>

// Turbo's parameters and their language, which pyfastv_turbo_parse() describes; "off" is the caller's business. All throw std::invalid_argument, which names
// the value and the limit.
namespace pyfastv {

pyfastv_turbo_params default_turbo();

pyfastv_turbo_params parse_turbo(const std::string & text);

void validate(const pyfastv_turbo_params & params);

std::string to_text(const pyfastv_turbo_params & params);

} // namespace pyfastv
