#include "pyfastv.h"

#include "capi/caught.h"
#include "capi/sizes.h"
#include "llama/context.h"
#include "llama/supported.h"
#include "settings/rules.h"
#include "settings/schedule.h"
#include "stages/staged_decode.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace {

using pyfastv::context_access;

thread_local std::string last_error;

// f(), or, with what it throws as the last error, `otherwise`
template <typename T, typename F>
T guarded(T otherwise, F && f) noexcept {
    try {
        return f();
    } catch (...) {
        pyfastv::caught(last_error);
        return otherwise;
    }
}

pyfastv_status fail(pyfastv_status status, const std::string & message) {
    last_error = message;
    return status;
}

// get(): a vector, of a context with stages
template <typename T, typename F>
size_t copy_out(const llama_context * ctx, T * out, size_t cap, F && get) {
    return guarded((size_t) 0, [&]() -> size_t {
        const auto * stages = context_access::stages_of(*ctx);
        if (!stages) {
            return 0;
        }
        const std::vector<T> values = get(*stages);

        std::copy_n(values.begin(), std::min(values.size(), cap), out);
        return values.size();
    });
}

void check_size(const pyfastv_params & params) { pyfastv::check_size<pyfastv_params>("pyfastv_params", params.size); }

// -1: none
template <typename T, size_t N>
int32_t find(const T (&rules)[N], const char * name) {
    const auto found = std::find_if(rules, rules + N, [&](const T & rule) { return strcmp(rule.name, name) == 0; });
    return found == rules + N ? -1 : (int32_t) (found - rules);
}

template <typename T, size_t N>
const char * name_of(const T (&rules)[N], int32_t row) {
    return row >= 0 && row < (int32_t) N ? rules[row].name : nullptr;
}

pyfastv_report report_of(const llama_context & ctx) {
    if (const auto * stages = context_access::stages_of(ctx)) {
        return stages->report();
    }

    pyfastv_report res = {};
    if (const auto * memory = context_access::memory_of(ctx)) {
        const auto bytes = pyfastv::kv_bytes_of(*memory);

        res.n_stages         = 1;
        res.kv_bytes_used[0] = res.kv_bytes_used_stock = bytes.used;
        res.kv_bytes[0]      = res.kv_bytes_stock      = bytes.allocated;
    }
    return res;
}

} // namespace

const char * pyfastv_version(void) {
    return PYFASTV_VERSION;
}

int32_t pyfastv_find_score(const char * name) { return find(pyfastv::score_rules, name); }
int32_t pyfastv_find_pick (const char * name) { return find(pyfastv::pick_rules,  name); }

const char * pyfastv_score_name(int32_t score) { return name_of(pyfastv::score_rules, score); }
const char * pyfastv_pick_name (int32_t pick)  { return name_of(pyfastv::pick_rules,  pick); }

enum pyfastv_status pyfastv_default_params(struct pyfastv_params * params, size_t size) {
    return pyfastv::as_status(last_error, [&] {
        pyfastv::check_size<pyfastv_params>("pyfastv_params", size);
        *params = pyfastv::default_params();
        return PYFASTV_OK;
    });
}

enum pyfastv_status pyfastv_parse(const char * text, int32_t n_layer, struct pyfastv_params * params) {
    return pyfastv::as_status(last_error, [&] {
        check_size(*params);
        const auto res = pyfastv::to_params(pyfastv::parse_schedule(text), n_layer);
        pyfastv::validate(res, n_layer);
        *params = res;
        return PYFASTV_OK;
    });
}

const char * pyfastv_unsupported_reason(const struct llama_model * model) {
    return pyfastv::unsupported_reason(*model);
}

const char * pyfastv_unsupported_layer(const struct llama_model * model, int32_t layer) {
    return pyfastv::unsupported_layer(*model, layer, true);
}

enum pyfastv_status pyfastv_fit_layers(const struct llama_model * model, struct pyfastv_params * params) {
    return pyfastv::as_status(last_error, [&] {
        check_size(*params);
        pyfastv::fit_layers(*model, *params);
        return PYFASTV_OK;
    });
}

// f(), which gives a context or a sequence stages
template <typename F>
static pyfastv_status with_stages(const llama_context * ctx, F && f) {
    return pyfastv::as_status(last_error, [&] {
        try {
            f();
            return PYFASTV_OK;
        } catch (const std::invalid_argument & err) {
            return fail(PYFASTV_BAD_PARAMS, err.what());
        } catch (const pyfastv::unsupported & err) {
            return fail(PYFASTV_UNSUPPORTED, pyfastv::arch_name_of(*ctx) + " cannot be run in stages: " + err.what());
        } catch (const pyfastv::error &) {
            throw;
        } catch (const std::exception & err) {
            return fail(PYFASTV_OUT_OF_MEMORY, std::string("out of memory for the stages: ") + err.what());
        }
    });
}

enum pyfastv_status pyfastv_attach(struct llama_context * ctx, const struct pyfastv_params * params) {
    return with_stages(ctx, [&] {
        if (params) {
            check_size(*params);
            pyfastv::staged_decode::attach(*ctx, *params);
        } else {
            pyfastv::staged_decode::detach(*ctx);
        }
    });
}

static const char * no_stages = "the context has no stages: pyfastv_attach() gives it some";

enum pyfastv_status pyfastv_set_schedule(struct llama_context * ctx, int32_t seq_id, const struct pyfastv_params * params) {
    return pyfastv::as_status(last_error, [&] {
        if (params) {
            check_size(*params);
        }
        auto * stages = context_access::stages_of(*ctx);
        if (!stages) {
            return fail(PYFASTV_UNSUPPORTED, no_stages);
        }
        return with_stages(ctx, [&] { stages->set_schedule(seq_id, params); });
    });
}

enum pyfastv_status pyfastv_get_schedule(const struct llama_context * ctx, int32_t seq_id, struct pyfastv_params * params) {
    return pyfastv::as_status(last_error, [&] {
        check_size(*params);
        const auto * stages = context_access::stages_of(*ctx);
        if (!stages) {
            return fail(PYFASTV_UNSUPPORTED, no_stages);
        }
        *params = stages->schedule(seq_id);
        return PYFASTV_OK;
    });
}

bool pyfastv_fits(const struct llama_context * ctx, const struct pyfastv_params * params) {
    return guarded(false, [&] {
        check_size(*params);
        const auto * stages = context_access::stages_of(*ctx);
        if (!stages) {
            return false;
        }
        pyfastv::validate(*params, context_access(const_cast<llama_context &>(*ctx)).n_layer());
        return stages->fits(*params);
    });
}

// of a status other than PYFASTV_OK
static const char * reason_of(pyfastv_status status) {
    switch (status) {
        case PYFASTV_ABORTED:       return "the later layers were stopped by the abort callback";
        case PYFASTV_OUT_OF_MEMORY: return "out of memory in the later layers";
        default:                    return "the later layers could not be run";
    }
}

enum pyfastv_status pyfastv_flush(struct llama_context * ctx) {
    auto * stages = context_access::stages_of(*ctx);
    if (!stages) {
        return PYFASTV_OK;
    }
    return pyfastv::as_status(last_error, [&] {
        const auto status = stages->flush();
        return status == PYFASTV_OK ? status : fail(status, reason_of(status));
    });
}

enum pyfastv_status pyfastv_flush_piece(struct llama_context * ctx, int32_t seq_id, bool * more) {
    *more = false;

    auto * stages = context_access::stages_of(*ctx);
    if (!stages) {
        return PYFASTV_OK;
    }
    return pyfastv::as_status(last_error, [&] {
        const auto status = stages->flush_piece(seq_id, *more);
        return status == PYFASTV_OK ? status : fail(status, reason_of(status));
    });
}

void pyfastv_set_answering(struct llama_context * ctx, bool answering) {
    if (auto * stages = context_access::stages_of(*ctx)) {
        stages->set_answering(answering);
    }
}

void pyfastv_allow_position_gaps(struct llama_context * ctx) {
    pyfastv::staged_decode::allow_position_gaps(*ctx);
}

bool pyfastv_token_embedding(const struct llama_model * model, int32_t token, float * out) {
    return guarded(false, [&] { return pyfastv::token_embedding(*model, token, out); });
}

void pyfastv_begin_media(struct llama_context * ctx, enum pyfastv_media media, const char * id, int32_t nx, int32_t ny) {
    pyfastv::as_status(last_error, [&] {
        if (auto * stages = context_access::stages_of(*ctx)) {
            stages->begin_media(media, id, nx, ny);
        }
        return PYFASTV_OK;
    });
}

void pyfastv_continue_media(struct llama_context * ctx) {
    if (auto * stages = context_access::stages_of(*ctx)) {
        stages->continue_media();
    }
}

enum pyfastv_status pyfastv_get_report(const struct llama_context * ctx, struct pyfastv_report * report) {
    return pyfastv::as_status(last_error, [&] {
        const size_t size = report->size;
        // shorter ones are those of earlier versions
        if (size < sizeof(size) || size > sizeof(*report) || size % alignof(pyfastv_report) != 0) {
            pyfastv::refuse_size("pyfastv_report", size, sizeof(*report));
        }
        auto res = report_of(*ctx);
        res.size = size;
        memcpy(report, &res, size);
        return PYFASTV_OK;
    });
}

void pyfastv_reset_report(struct llama_context * ctx) {
    if (auto * stages = context_access::stages_of(*ctx)) {
        stages->reset_report();
    }
}

size_t pyfastv_get_kept(const struct llama_context * ctx, int32_t seq_id, int32_t cut, int32_t * out, size_t cap) {
    return copy_out(ctx, out, cap, [&](const auto & stages) { return stages.kept(seq_id, cut); });
}

size_t pyfastv_get_scores(const struct llama_context * ctx, int32_t seq_id, int32_t cut, float * out, size_t cap) {
    return copy_out(ctx, out, cap, [&](const auto & stages) { return stages.scores(seq_id, cut); });
}

size_t pyfastv_get_grids(const struct llama_context * ctx, int32_t seq_id, struct pyfastv_grid * out, size_t cap) {
    return copy_out(ctx, out, cap, [&](const auto & stages) { return stages.grids(seq_id); });
}

const char * pyfastv_last_error(void) {
    return last_error.c_str();
}
