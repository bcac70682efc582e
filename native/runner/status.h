#pragma once

#include "runner/errors.h"

#include "pyfastv.h"

#include <optional>

namespace pyfastv {

inline pyfastv_report report_of(const llama_context * ctx) {
    pyfastv_report res = {};
    res.size = sizeof(res);
    pyfastv_get_report(ctx, &res); // no memory for it: nothing
    return res;
}

// by which the context was given stages; nothing: it has none
inline std::optional<pyfastv_params> attached_to(const llama_context * ctx) {
    pyfastv_params res = {};
    res.size = sizeof(res);
    return pyfastv_get_schedule(ctx, -1, &res) == PYFASTV_OK ? std::optional(res) : std::nullopt;
}

inline error_kind kind_of(pyfastv_status status) {
    switch (status) {
        case PYFASTV_BAD_PARAMS:    return error_kind::option;
        case PYFASTV_UNSUPPORTED:   return error_kind::unsupported;
        case PYFASTV_OUT_OF_MEMORY: return error_kind::out_of_memory;
        default:                    return error_kind::decode;
    }
}

} // namespace pyfastv
