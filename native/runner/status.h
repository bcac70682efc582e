#pragma once

#include "runner/errors.h"

#include "pyfastv.h"

namespace pyfastv {

inline pyfastv_report report_of(const llama_context * ctx) {
    pyfastv_report res = {};
    res.size = sizeof(res);
    pyfastv_get_report(ctx, &res); // no memory for it: nothing
    return res;
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
