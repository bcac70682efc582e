#pragma once

#include "runner/errors.h"

#include "pyfastv.h"

#include <exception>
#include <new>
#include <stdexcept>
#include <string>

namespace pyfastv {

// In catch (...), where nothing may pass on: the status of what is being thrown, and what it says.
inline pyfastv_status caught(std::string & reason) noexcept {
    const auto say = [&](const char * text) {
        try {
            reason = text;
        } catch (const std::bad_alloc &) {
            reason.clear();
        }
    };
    try {
        throw;
    } catch (const std::bad_alloc &) {
        say("out of memory");
        return PYFASTV_OUT_OF_MEMORY;
    } catch (const error & err) {
        say(err.what());
        return err.kind == error_kind::out_of_memory ? PYFASTV_OUT_OF_MEMORY : PYFASTV_FAILED;
    } catch (const std::invalid_argument & err) {
        say(err.what());
        return PYFASTV_BAD_PARAMS;
    } catch (const std::exception & err) {
        say(err.what());
    } catch (...) {
        say("something was thrown that is no exception");
    }
    return PYFASTV_FAILED;
}

// f(), or the status of what it throws; `reason` then says what that was
template <typename F>
pyfastv_status as_status(std::string & reason, F && f) noexcept {
    try {
        return f();
    } catch (...) {
        return caught(reason);
    }
}

} // namespace pyfastv
