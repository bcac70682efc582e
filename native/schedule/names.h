#pragma once

#include "pyfastv.h"

#include <string>

namespace pyfastv {

// The language of pyfastv_parse(), which describes it. Throws std::invalid_argument that names what is wrong, the value
// and the choices. Ranges are validate()'s business (schedule/schedule.h).
pyfastv_params parse_params(const std::string & text, int32_t n_layer);

// Valid parameters in full, for parse_params() to read again. What a cut's score and pick do not use is left out.
std::string to_text(const pyfastv_params & params);

} // namespace pyfastv
