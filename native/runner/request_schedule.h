#pragma once

#include "llama.h"
#include "pyfastv.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace pyfastv {

// By what a request's visual tokens are chosen.
struct request_schedule {
    std::string    text;        // in full: the same for the same. Empty: all stay
    pyfastv_params params = {}; // of the text

    bool    off()    const { return text.empty(); }
    int32_t n_cuts() const { return off() ? 0 : params.n_cuts; }

    // what a sequence has in a context with stages; off: all stay at its cuts, to the bit what one without stages computes
    pyfastv_params in(const pyfastv_params & attached) const;
};

// spec: the language of pyfastv_parse(); empty: all stay. Throws error(option).
request_schedule parse_request_schedule(const std::string & spec, int32_t n_layer);

// [cut] the layer that it asks for, and where the cut has to be in this model (pyfastv_fit_layers()). Throws error(option).
std::vector<std::pair<int32_t, int32_t>> fit_layers(const llama_model * model, const std::string & spec);

} // namespace pyfastv
