#include "runner/options.h"

#include "runner/cores.h"
#include "runner/errors.h"

#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace pyfastv {
namespace {

std::string to_text(double value) {
    char buf[32];
    snprintf(buf, sizeof(buf), "%g", value);
    return buf;
}

// no NaN, no infinity
void check_real(const char * name, double value, double low, double high) {
    if (!(value >= low && value <= high) || std::isinf(value)) {
        throw error(error_kind::option, std::string(name) + " = " + to_text(value) + ": it must be a finite number" +
                (std::isinf(low) ? "" : " of at least " + to_text(low)) + (std::isinf(high) ? "" : " and at most " + to_text(high)));
    }
}

} // namespace

void check_whole(const char * name, int64_t value, int64_t low, int64_t high) {
    if (value < low || value > high) {
        throw error(error_kind::option, std::string(name) + " = " + std::to_string(value) + ": it can be " + std::to_string(low) +
                " to " + std::to_string(high));
    }
}

void check_options(const engine_options & options) {
    check_whole("n_ctx",        options.n_ctx,         0, max_n_ctx);
    check_whole("n_batch",      options.n_batch,       1, INT32_MAX);
    check_whole("n_ubatch",     options.n_ubatch,      1, INT32_MAX);
    check_whole("n_threads",    options.n_threads,     0, GGML_MAX_N_THREADS);
    check_whole("n_threads_batch", options.n_threads_batch, 0, GGML_MAX_N_THREADS);
    check_whole("n_gpu_layers", options.n_gpu_layers, -1, INT32_MAX);
    check_whole("encoder_cache_bytes", options.encoder_cache_bytes, 0, INT64_MAX);
    check_whole("encoder_cache_disk_bytes", options.encoder_cache_disk_bytes, 0, INT64_MAX);
    check_whole("checkpoint_bytes", options.checkpoint_bytes, 0, INT64_MAX);
}

void check_options(const sampling_options & options) {
    check_whole("max_tokens",    options.max_tokens,    -1, INT32_MAX);
    check_whole("top_k",         options.top_k,         -1, INT32_MAX);
    check_whole("repeat_last_n", options.repeat_last_n, -1, INT32_MAX);
    check_whole("seed",          options.seed,           0, UINT32_MAX);

    check_real("temperature",       options.temperature,        0, INFINITY);
    check_real("top_p",             options.top_p,              0, 1);
    check_real("min_p",             options.min_p,              0, 1);
    check_real("typical_p",         options.typical_p,          0, 1);
    check_real("repeat_penalty",    options.repeat_penalty,     0, INFINITY);
    check_real("frequency_penalty", options.frequency_penalty, -INFINITY, INFINITY);
    check_real("presence_penalty",  options.presence_penalty,  -INFINITY, INFINITY);
    if (options.repeat_penalty == 0) {
        throw error(error_kind::option, "repeat_penalty = 0: it must be above 0; 1 is off");
    }
}

void resolve_threads(engine_options & options) {
    if (options.n_threads == 0) {
        options.n_threads = std::min<int64_t>(usable_cores(), GGML_MAX_N_THREADS);
    }
    if (options.n_threads_batch == 0) {
        options.n_threads_batch = options.n_threads;
    }
}

int32_t most_threads(const engine_options & options) {
    return (int32_t) std::max(options.n_threads, options.n_threads_batch);
}

} // namespace pyfastv
