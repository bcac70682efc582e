#pragma once

#include "pyfastv.h"

#include <cstdint>
#include <string>

namespace pyfastv {

// By what a request's visual tokens are chosen.
struct request_schedule {
    std::string    text;        // in full: the same for the same. Empty: all stay
    pyfastv_params params = {}; // of the text

    bool    off()    const { return text.empty(); }
    int32_t n_cuts() const { return off() ? 0 : params.n_cuts; }
};

// spec: the language of pyfastv_parse(); empty: all stay. Throws error(option).
request_schedule parse_request_schedule(const std::string & spec, int32_t n_layer);

// at the cuts of another schedule all stay
pyfastv_params keeping_all(const pyfastv_params & other);

} // namespace pyfastv
