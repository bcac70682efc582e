#pragma once

#include "pyfastv_skip.h"

#include <string>

// What is left out of a picture before the encoder, and its language, which pyfastv_skip_parse() describes; "off" is the caller's
// business. All throw std::invalid_argument, which names the value and the limit.
namespace pyfastv {

pyfastv_skip_params default_skip();

pyfastv_skip_params parse_skip(const std::string & text);

void validate(const pyfastv_skip_params & params);

std::string to_text(const pyfastv_skip_params & params);

} // namespace pyfastv
