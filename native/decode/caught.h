#pragma once

#include "ggml.h"

#include <cstdint>

class llm_graph_result;

namespace pyfastv {

// Nothing is thrown into programs that know nothing of it: what a computation throws becomes a status, and an error in
// the log.

// llama_decode()'s return values
int32_t to_decode_result(ggml_status status);

// in catch (...): the status of what is being thrown. function: for the log
ggml_status status_of_exception(const char * function) noexcept;

// call sites in llama_decode() and llama_process(): f(), which returns llama_decode()'s values
template <typename F>
int32_t decode_result(F && f) {
    try {
        return f();
    } catch (...) {
        return to_decode_result(status_of_exception("llama_decode"));
    }
}

// call site in llama_context::decode(): f(), which computes a ubatch and sets the status; null if it throws
template <typename F>
llm_graph_result * computed(ggml_status & status, F && f) {
    try {
        return f();
    } catch (...) {
        status = status_of_exception("llama_decode");
        return nullptr;
    }
}

} // namespace pyfastv
