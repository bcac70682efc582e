#include "pyfastv.h"

#include "decode/staged_decode.h"
#include "schedule/schedule.h"

#include "llama-context.h"
#include "llama-model.h"

#include <algorithm>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>

namespace {

thread_local std::string last_error;

pyfastv_status fail(pyfastv_status status, const std::string & message) {
    last_error = message;
    return status;
}

template <typename T>
size_t copy_out(const std::vector<T> & values, T * out, size_t cap) {
    std::copy_n(values.begin(), std::min(values.size(), cap), out);
    return values.size();
}

} // namespace

struct pyfastv_params pyfastv_default_params(void) {
    return {
        /*.k      =*/ 2,
        /*.drop   =*/ 0.5f,
        /*.score  =*/ PYFASTV_SCORE_LAST,
        /*.pick   =*/ PYFASTV_PICK_TOP_K,
        /*.window =*/ 4,
    };
}

const char * pyfastv_unsupported_reason(const struct llama_model * model) {
    return pyfastv::unsupported_reason(*model);
}

enum pyfastv_status pyfastv_attach(struct llama_context * ctx, const struct pyfastv_params * params) {
    try {
        if (params) {
            pyfastv::staged_decode::attach(*ctx, *params);
        } else {
            pyfastv::staged_decode::detach(*ctx);
        }
        return PYFASTV_OK;
    } catch (const std::invalid_argument & err) {
        return fail(PYFASTV_BAD_PARAMS, err.what());
    } catch (const pyfastv::unsupported & err) {
        return fail(PYFASTV_UNSUPPORTED, ctx->get_model().arch_name() + " cannot be run in stages: " + err.what());
    } catch (const std::exception & err) {
        return fail(PYFASTV_OUT_OF_MEMORY, std::string("out of memory for the stages: ") + err.what());
    }
}

enum pyfastv_status pyfastv_flush(struct llama_context * ctx) {
    if (!ctx->fastv) {
        return PYFASTV_OK;
    }
    try {
        const auto status = ctx->fastv->flush();
        return status == PYFASTV_OK ? status : fail(status, "the later layers could not be run");
    } catch (const std::bad_alloc &) {
        return fail(PYFASTV_OUT_OF_MEMORY, "out of memory in the later layers");
    } catch (const std::exception & err) {
        return fail(PYFASTV_FAILED, err.what());
    }
}

void pyfastv_set_media(struct llama_context * ctx, enum pyfastv_media media) {
    if (ctx->fastv) {
        ctx->fastv->set_media(media);
    }
}

struct pyfastv_report pyfastv_get_report(const struct llama_context * ctx) {
    if (ctx->fastv) {
        return ctx->fastv->report();
    }

    pyfastv_report res = {};
    if (const auto * kv = dynamic_cast<const llama_kv_cache *>(ctx->get_memory())) {
        res.n_stages         = 1;
        res.kv_cell_bytes[0] = pyfastv::cell_bytes(*kv);
        res.kv_cells_used[0] = kv->get_cells(0).get_used();
        res.kv_cells_size[0] = kv->get_size();
    }
    return res;
}

void pyfastv_reset_report(struct llama_context * ctx) {
    if (ctx->fastv) {
        ctx->fastv->reset_report();
    }
}

size_t pyfastv_get_kept(const struct llama_context * ctx, int32_t * out, size_t cap) {
    return ctx->fastv ? copy_out(ctx->fastv->kept(), out, cap) : 0;
}

size_t pyfastv_get_scores(const struct llama_context * ctx, float * out, size_t cap) {
    return ctx->fastv ? copy_out(ctx->fastv->scores(), out, cap) : 0;
}

const char * pyfastv_last_error(void) {
    return last_error.c_str();
}
