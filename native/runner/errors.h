#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace pyfastv {

// One class for each class of pyfastv/errors.py; native/bindings/module.cpp translates.
enum class error_kind {
    option,         // OptionError
    model,          // ModelError
    unsupported,    // UnsupportedModelError
    image,          // ImageError
    context_length, // ContextLengthError
    out_of_memory,  // OutOfMemoryError
    decode,         // DecodeError
    closed,         // ClosedError
};

struct error : std::runtime_error {
    error(error_kind kind, const std::string & message) : std::runtime_error(message), kind(kind) {}

    error_kind kind;

    // context_length
    int64_t n_tokens = 0;
    int64_t n_ctx    = 0;
};

// The caller's callback said stop; whoever set the callback knows why.
struct interrupted : std::runtime_error {
    interrupted() : std::runtime_error("interrupted") {}
};

} // namespace pyfastv
