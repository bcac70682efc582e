#include "runner/log.h"

#include "ggml.h"
#include "llama.h"
#include "mtmd-helper.h"

#include <cstdio>
#include <mutex>

namespace pyfastv {

static thread_local log_scope * current = nullptr;

struct log_sink {
    static void write(ggml_log_level level, const char * text, void * /* user_data */) {
        if (!current) {
            return;
        }
        if (level == GGML_LOG_LEVEL_ERROR) {
            current->errors += text;
        }
        if (current->verbose) {
            fputs(text, stderr);
        }
    }
};

log_scope::log_scope(bool verbose) : outer(current), verbose(verbose) {
    static std::once_flag once;
    std::call_once(once, [] {
        llama_log_set(log_sink::write, nullptr);
        mtmd_helper_log_set(log_sink::write, nullptr);
    });

    current = this;
}

log_scope::~log_scope() {
    current = outer;
}

std::string log_scope::reason(const std::string & otherwise) const {
    std::string line = errors.substr(0, errors.find('\n'));

    // "function: text", sometimes nested
    for (size_t at = line.find(": "); at != std::string::npos && line.find_first_of(" '\"/") > at; at = line.find(": ")) {
        line.erase(0, at + 2);
    }

    return line.empty() ? otherwise : line;
}

} // namespace pyfastv
