#include "llama/call_sites.h"

#include "stages/caught.h"
#include "stages/staged_decode.h"
#include "llama/context.h"

namespace pyfastv {

void delete_staged_decode::operator()(staged_decode * stages) const { delete stages; }

void attach_from_environment(llama_context & ctx, const llama_context_params & made_with) {
    context_access(ctx).check_params();
    staged_decode::attach_from_env(ctx, made_with);
}

void reserve(staged_decode & stages) { stages.reserve(); }

bool takes(staged_decode & stages, const llama_batch_allocr & balloc) { return stages.takes(balloc); }

int32_t decode(staged_decode & stages, llama_batch_allocr & balloc) { return stages.decode(balloc); }

void flush_if_read(staged_decode & stages) noexcept { stages.flush_if_read(); }

int32_t decode_result_of_exception(llama_context & ctx) noexcept {
    // whatever it came from, it may have been the reservation
    context_access(ctx).forget_reservation();

    return to_decode_result(status_of_exception("llama_decode"));
}

} // namespace pyfastv
