#include "runner/rehearsal.h"

#include "guard/abort_guard.h"
#include "runner/errors.h"
#include "runner/log.h"
#include "runner/prompt.h"

#include "ggml.h"

#include <utility>
#include <vector>

// libmtmd, third_party/patches
void mtmd_set_n_threads(mtmd_context * ctx, int n_threads);

namespace pyfastv {
namespace {

constexpr int64_t budget_us = 50'000;
constexpr int32_t side      = 224; // of the picture, in pixels

struct deadline {
    int64_t at = ggml_time_us() + budget_us;

    bool passed() const { return ggml_time_us() >= at; }
};

thread_local const deadline * current = nullptr;

class rehearsal_scope {
public:
    rehearsal_scope() { current = &time; }
    ~rehearsal_scope() { current = nullptr; }

    rehearsal_scope(const rehearsal_scope &) = delete;

private:
    deadline time;
};

// f(); what it throws as an error of the file
template <typename F>
void blame(const std::string & path, F && f) {
    try {
        f();
    } catch (const error & err) {
        throw error(err.kind == error_kind::out_of_memory ? err.kind : error_kind::model, path + ": cannot be used: " + err.what());
    }
}

} // namespace

bool rehearses() {
    return current != nullptr;
}

bool rehearsal_goes_on(bool ask) {
    return ask || !current->passed();
}

bool asks_interrupt(void * data) {
    return (*static_cast<const interrupt_fn *>(data))();
}

void rehearse(llama_context * ctx, const engine_options & options, const interrupt_fn & stop) {
    llama_set_n_threads(ctx, 1, 1);

    for (const size_t n : { 1, 4 }) {
        std::vector<llama_token> tokens(n, 0);
        deadline                 time;
        const log_scope          log(options.verbose);

        llama_set_abort_callback(ctx, [](void * data) { return static_cast<const deadline *>(data)->passed(); }, &time);
        blame(options.model_path, [&] {
            // others are told when they happen to a request
            if (llama_decode(ctx, llama_batch_get_one(tokens.data(), (int32_t) n)) < 0) {
                throw log.failure(error_kind::model, "a token cannot be evaluated");
            }
            llama_synchronize(ctx);
        });
        llama_set_abort_callback(ctx, asks_interrupt, const_cast<interrupt_fn *>(&stop));
        llama_memory_clear(llama_get_memory(ctx), false);
    }
    llama_set_n_threads(ctx, (int32_t) options.n_threads, (int32_t) options.n_threads_batch);
    llama_perf_context_reset(ctx);
}

void rehearse(mtmd_context * vision, const llama_model * model, const engine_options & options, const std::string & marker) {
    const std::vector<uint8_t> grey(3*side*side, 128);
    const image                blank = { side, side, grey.data(), "blank" };

    blame(*options.mmproj_path, [&] {
        const auto prompt = tokenize(model, vision, {}, marker, marker, { blank }, false, INT64_MAX);

        mtmd_set_n_threads(vision, 1);
        for (const auto & piece : prompt.pieces) {
            if (piece.visual()) {
                const log_scope       log(options.verbose);
                const rehearsal_scope rehearsal;
                if (mtmd_encode_chunk(vision, piece.chunk) != 0 && !current->passed()) {
                    throw log.failure(error_kind::model, "a picture cannot be encoded");
                }
                break;
            }
        }
        mtmd_set_n_threads(vision, (int) options.n_threads_batch);
    });
}

} // namespace pyfastv
