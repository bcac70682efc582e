#include "guard/abort_guard.h"

#include "guard/team.h"

#include "ggml.h"

#include <cerrno>
#include <cstdio>
#include <exception>
#include <mutex>

namespace pyfastv {

static thread_local int n_alive = 0;

// whoever else in this process uses ggml keeps their callback
static ggml_abort_callback_t other_callback = nullptr;

// Where this returns, ggml aborts. message: "path/of/file:line: text"
static void on_abort(const char * message) {
    const bool no_memory = errno == ENOMEM;

    // a second exception on the way of a first would end in std::terminate
    if (n_alive > 0 && !pyfastv_in_team() && std::uncaught_exceptions() == 0) {
        const std::string text(message);
        const size_t      folder = text.rfind('/', text.find(": "));
        const auto        where  = text.substr(folder == std::string::npos ? 0 : folder + 1);

        if (no_memory || is_about_memory(text)) {
            throw ggml_aborted(error_kind::out_of_memory, "out of memory (" + where + ")");
        }
        throw ggml_aborted(error_kind::decode, "ggml gave up: " + where);
    }
    if (other_callback) {
        other_callback(message);
    } else {
        fprintf(stderr, "%s\n", message);
    }
}

abort_guard::abort_guard() {
    static std::once_flag once;
    std::call_once(once, [] { other_callback = ggml_set_abort_callback(on_abort); });

    if (n_alive++ == 0) {
        errno = 0; // so that on_abort knows whether an allocation failed in between
    }
}

abort_guard::~abort_guard() {
    n_alive--;
}

bool is_about_memory(const std::string & reason) {
    for (const char * word : { "to allocate", "annot allocate", "bad_alloc", "insufficient memory", "ut of memory", "mem_buffer" }) {
        if (reason.find(word) != std::string::npos) {
            return true;
        }
    }
    return false;
}

} // namespace pyfastv
