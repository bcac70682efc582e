#pragma once

#include "pyfastv.h"

#include <string>

namespace pyfastv {

// "last", "question-mean", "question-max". Throws std::invalid_argument that names the value and the choices.
pyfastv_score parse_score(const std::string & name);

// "top-k", "uniform", or "window" and the side of a window in patches, as in "window4"; sets pick and window.
// Throws std::invalid_argument that names the value and the choices.
void parse_pick(const std::string & name, pyfastv_params & params);

} // namespace pyfastv
