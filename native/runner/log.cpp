#include "runner/log.h"

#include "guard/abort_guard.h"

#include "ggml.h"
#include "llama.h"
#include "mtmd-helper.h"

#include <cstdio>
#include <cstring>
#include <mutex>
#include <new>

namespace pyfastv {

static thread_local log_scope * current = nullptr;

// whoever else in this process uses these libraries keeps their log
static ggml_log_callback other_callback = nullptr;
static void *            other_data     = nullptr;

struct log_sink {
    static void write(ggml_log_level level, const char * text, void * /* user_data */) {
        if (!current) {
            if (other_callback) {
                other_callback(level, text, other_data);
            }
            return;
        }
        if (level == GGML_LOG_LEVEL_ERROR) {
            current->add(text);
        }
        if (current->verbose) {
            fputs(text, stderr);
        }
    }

    static void install() {
        static std::mutex mutex;
        const std::lock_guard<std::mutex> lock(mutex);

        ggml_log_callback callback = nullptr;
        void *            data     = nullptr;
        llama_log_get(&callback, &data);

        if (callback == write) {
            return;
        }
        static bool first = true;
        if (!first) {
            other_callback = callback;
            other_data     = data;
        }
        first = false;

        llama_log_set(write, nullptr);
        mtmd_helper_log_set(write, nullptr);
    }
};

log_scope::log_scope(bool verbose) : outer(current), verbose(verbose) {
    if (!outer) {
        log_sink::install();
    }
    current = this;
}

log_scope::~log_scope() {
    current = outer;
}

void log_scope::add(const char * line) noexcept {
    try {
        errors += line;
    } catch (const std::bad_alloc &) {
        // the C code that logs must not be left by an exception
    }
}

// llama.cpp says what is wrong, not where
static std::string with_key(const std::string & reason) {
    constexpr const char * keys[][2] = {
        { "unknown model architecture", "general.architecture" },
        { "unknown projector type",     "clip.projector_type" },
        { "unknown tokenizer",          "tokenizer.ggml.model" },
        { "unknown pre-tokenizer type", "tokenizer.ggml.pre" },
        { "invalid n_rot",              "rope.dimension_count or attention.key_length" },
        { "wrong number of tensors",    "block_count" },
        { "n_ctx_orig_yarn",            "rope.scaling.original_context_length" },
        { "mismatch between text",      "embedding_length or n_deepstack_layers; in the mmproj the last matrix" },
        { "cannot find tokenizer merges", "tokenizer.ggml.merges" },
        { "error loading model vocabulary", "tokenizer.ggml.tokens, or another one of the vocabulary" },
    };
    for (const auto & [words, key] : keys) {
        if (reason.find(words) != std::string::npos) {
            return reason + " (key " + key + ")";
        }
    }
    return reason;
}

std::string log_scope::reason(const std::string & otherwise) const {
    std::string line = errors.substr(0, errors.find('\n'));

    // "function: text", sometimes nested
    for (size_t at = line.find(": "); at != std::string::npos && line.find_first_of(" '\"/") > at; at = line.find(": ")) {
        line.erase(0, at + 2);
    }

    if (const size_t at = line.find("std::bad_alloc"); at != std::string::npos) {
        line.replace(at, strlen("std::bad_alloc"), "out of memory");
    }

    return line.empty() ? otherwise : with_key(line);
}

error log_scope::failure(error_kind kind, const std::string & what, const std::string & otherwise) const {
    return error(is_about_memory(errors) ? error_kind::out_of_memory : kind, what + ": " + reason(otherwise));
}

} // namespace pyfastv
