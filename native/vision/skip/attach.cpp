// the C API of pyfastv_skip.h

#include "pyfastv_skip.h"

#include "capi/caught.h"
#include "capi/sizes.h"
#include "settings/skip.h"
#include "settings/text.h"
#include "vision/call_sites.h"
#include "vision/encoders.h"

#include "clip.h"
#include "clip-impl.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>

namespace {

thread_local std::string last_error;

// empty: none
std::string unsupported(const mtmd_context * ctx) {
    const auto * clip = mtmd_get_vision(ctx);
    if (!clip) {
        return "the mmproj file has no vision encoder";
    }
    const auto * rule = pyfastv::rule_of(clip);
    if (rule && rule->skips != pyfastv::skipping::never) {
        return "";
    }
    std::string names;
    for (const auto & name : pyfastv::encoders_that_skip()) {
        names += (names.empty() ? "" : ", ") + name;
    }
    return "the projector is " + PROJECTOR_TYPE_NAMES[clip_get_projector_type(clip)] + ", and those that can are " + names;
}

void check_size(const pyfastv_skip_params & params) { pyfastv::check_size<pyfastv_skip_params>("pyfastv_skip_params", params.size); }

} // namespace

enum pyfastv_status pyfastv_skip_default_params(struct pyfastv_skip_params * params, size_t size) {
    return pyfastv::as_status(last_error, [&] {
        pyfastv::check_size<pyfastv_skip_params>("pyfastv_skip_params", size);
        *params = pyfastv::default_skip();
        return PYFASTV_OK;
    });
}

enum pyfastv_status pyfastv_skip_parse(const char * text, struct pyfastv_skip_params * params) {
    return pyfastv::as_status(last_error, [&] {
        check_size(*params);
        *params = pyfastv::parse_skip(text);
        return PYFASTV_OK;
    });
}

const char * pyfastv_skip_unsupported_reason(const struct mtmd_context * ctx) {
    const auto status = pyfastv::as_status(last_error, [&] {
        last_error = unsupported(ctx);
        return PYFASTV_OK;
    });
    return status == PYFASTV_OK && last_error.empty() ? nullptr : last_error.c_str();
}

enum pyfastv_status pyfastv_skip_attach(struct mtmd_context * ctx, const struct pyfastv_skip_params * params) {
    if (!params) {
        if (auto * clip = mtmd_get_vision(ctx)) {
            clip_get_state(clip).skip.reset();
        }
        return PYFASTV_OK;
    }
    return pyfastv::as_status(last_error, [&] {
        check_size(*params);
        const auto reason = unsupported(ctx);
        if (!reason.empty()) {
            last_error = "this encoder cannot leave patches out: " + reason;
            return PYFASTV_UNSUPPORTED;
        }
        pyfastv::validate(*params);
        clip_get_state(mtmd_get_vision(ctx)).skip = *params;
        return PYFASTV_OK;
    });
}

size_t pyfastv_skip_places(const struct mtmd_image_tokens * image_tokens, int32_t * out, size_t cap) {
    const auto * units = mtmd_image_tokens_get_units(image_tokens);
    if (!units) {
        return 0;
    }
    std::copy_n(units->kept.begin(), std::min(units->kept.size(), cap), out);
    return units->kept.size();
}

const char * pyfastv_skip_last_error(void) {
    return last_error.c_str();
}

mtmd_context * pyfastv::skip_from_environment(mtmd_context * ctx) {
    const char * text = getenv("LLAMA_SKIP");
    if (!text || !*text || pyfastv::is_off(text)) {
        return ctx;
    }
    auto params = pyfastv::default_skip();
    if (pyfastv_skip_parse(text, &params) != PYFASTV_OK || pyfastv_skip_attach(ctx, &params) != PYFASTV_OK) {
        // a program may make several contexts
        static std::once_flag told;
        std::call_once(told, [&] { fprintf(stderr, "LLAMA_SKIP=%s: nothing is left out: %s\n", text, last_error.c_str()); });
    }
    return ctx;
}
