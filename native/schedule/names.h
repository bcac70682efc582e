#pragma once

#include "pyfastv.h"

#include <string>

namespace pyfastv {

// "last", "question-mean", "question-max". Throws std::invalid_argument that names the value and the choices.
pyfastv_score parse_score(const std::string & name);

// "top-k", "uniform", or "window" and the side of a window in patches, as in "window4"; sets pick and window.
// Throws std::invalid_argument that names the value and the choices.
void parse_pick(const std::string & name, pyfastv_params & params);

// "k=2,drop=0.5,score=question-max,pick=window4": any of these, in any order; the others are pyfastv_default_params().
// Throws std::invalid_argument that names what is wrong. Ranges are validate()'s business.
pyfastv_params parse_params(const std::string & text);

} // namespace pyfastv
