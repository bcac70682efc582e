#include "stages/caught.h"

#include "capi/caught.h"

#include "llama/interfaces.h"

#include <new>
#include <string>

namespace pyfastv {

int32_t to_decode_result(ggml_status status) {
    switch (status) {
        case GGML_STATUS_SUCCESS:      return  0;
        case GGML_STATUS_ABORTED:      return  2;
        case GGML_STATUS_ALLOC_FAILED: return -2;
        case GGML_STATUS_FAILED:       return -3;
    }
    return -3;
}

ggml_status status_of_exception(const char * function) noexcept {
    std::string reason;
    const auto  status = caught(reason);

    try {
        LLAMA_LOG_ERROR("%s: %s\n", function, reason.c_str());
    } catch (const std::bad_alloc &) {
        // nobody hears of it
    }

    return status == PYFASTV_OUT_OF_MEMORY ? GGML_STATUS_ALLOC_FAILED : GGML_STATUS_FAILED;
}

} // namespace pyfastv
