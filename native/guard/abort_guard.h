#pragma once

#include "runner/errors.h"

#include <string>

namespace pyfastv {

// What ggml aborts for (GGML_ASSERT, GGML_ABORT), with its message. Its kind is out_of_memory if an allocation failed, else
// decode.
struct ggml_aborted : error {
    ggml_aborted(error_kind kind, const std::string & message) : error(kind, message) {}
};

// While a guard is alive on a thread, ggml's aborts on that thread throw ggml_aborted instead of ending the process. They
// unwind through ggml's C code, which releases nothing: what was being built may leak, and what was being computed is not
// there.
//
// An abort ends the process as before where no guard is alive: in programs that load our libraries, in the workers of a
// computation, and in the thread that computes together with workers, who would wait for it for ever. A computation of one
// thread has no workers.
class abort_guard {
public:
    abort_guard();
    ~abort_guard();

    abort_guard(const abort_guard &) = delete;
};

// Does an error line of llama.cpp or ggml speak of memory that could not be had?
bool is_about_memory(const std::string & reason);

} // namespace pyfastv
