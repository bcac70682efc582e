#pragma once

#include <cstdint>
#include <exception>
#include <new>
#include <optional>
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

// What f() throws, as an error; none if it returns.
template <typename F>
std::optional<error> error_of(F && f) {
    try {
        f();
        return std::nullopt;
    } catch (const error & err) {
        return err;
    } catch (const std::bad_alloc &) {
        return error(error_kind::out_of_memory, "out of memory");
    } catch (const std::exception & err) {
        return error(error_kind::decode, err.what());
    }
}

// f(), whose std::invalid_argument is an option's
template <typename F>
auto option_checked(F && f, const std::string & what = "") {
    try {
        return f();
    } catch (const std::invalid_argument & err) {
        throw error(error_kind::option, what + err.what());
    }
}

// The caller's callback said stop; whoever set the callback knows why.
struct interrupted : std::runtime_error {
    interrupted() : std::runtime_error("interrupted") {}
};

} // namespace pyfastv
