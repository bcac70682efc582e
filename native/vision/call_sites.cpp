#include "vision/call_sites.h"

#include "pyfastv.h"

#include "clip.h"
#include "clip-impl.h"

#include <algorithm>
#include <cstdio>
#include <numeric>

namespace pyfastv {

std::unique_ptr<turbo_graph> begin_graph(encoder_state & state, ggml_context * ctx0, ggml_cgraph * gf, int32_t n_patches) {
    state.eval.begin(); // what fails before it is computed was not stopped
    return state.turbo ? std::make_unique<turbo_graph>(*state.turbo, ctx0, gf, n_patches) : nullptr;
}

const encoder_rule * rule_of(const clip_ctx * ctx) {
    return find_encoder(PROJECTOR_TYPE_NAMES[clip_get_projector_type(ctx)]);
}

bool supports_batch(const encoder_state & state, bool supported) {
    return supported && !state.turbo;
}

int32_t count_tokens(const encoder_state & state, const encoded_units * units, int32_t n) {
    const int32_t encoded = count_encoded(units, n);
    return state.turbo ? state.turbo->count(encoded) : encoded;
}

ggml_status compute(encoder_state & state, ggml_backend_sched_t sched, ggml_cgraph * gf) {
    if (state.turbo) {
        state.turbo->set_inputs();
    }
    if (state.eval.callback()) {
        ggml_backend_sched_set_eval_callback(sched, state.eval.callback(), &state.eval);
    }
    state.eval.begin();

    const auto status = ggml_backend_sched_graph_compute(sched, gf);
    if (status != GGML_STATUS_SUCCESS) {
        return status;
    }
    if (state.eval.said()) {
        return GGML_STATUS_ABORTED;
    }
    if (state.turbo) {
        state.turbo->read_outputs();
    }
    return GGML_STATUS_SUCCESS;
}

namespace {

thread_local bool may_enlarge = true;

} // namespace

enlarging::enlarging(bool may) : before(may_enlarge) {
    may_enlarge = may;
}

enlarging::~enlarging() {
    may_enlarge = before;
}

int longest_edge(int edge, int width, int height) {
    return may_enlarge ? edge : std::min(edge, std::max(width, height));
}

int rows_of_tiles(int nx, int ny) {
    return !may_enlarge && nx == 1 && ny == 1 ? 0 : ny;
}

const encoded_units * units_of(const clip_image_f32_batch & picture) {
    return picture.entries.empty() ? nullptr : picture.entries[0].pyfastv_units.get();
}

size_t place_of(const clip_image_f32_batch & picture, size_t i) {
    const auto * units = units_of(picture);
    return units && i < units->kept.size() ? units->kept[i] : i;
}

int32_t encode_failure(clip_ctx * ctx) {
    auto & eval = clip_get_state(ctx).eval;

    const bool stopped = eval.said();
    eval.begin();
    return stopped ? PYFASTV_ENCODE_STOPPED : 1;
}

// of a picture of which something was merged or left out: false, and a line in the log, if they are not known
static bool picture_positions(const mtmd_context * ctx, const mtmd_image_tokens * image, int32_t n_tokens, llama_pos first, llama_pos * positions) {
    const auto * units = mtmd_image_tokens_get_units(image);

    const auto & turbo = clip_get_turbo(mtmd_get_vision(ctx));
    if ((turbo && !turbo->restore) || !units) {
        if (!turbo_positions(ctx, n_tokens, first, positions)) {
            return false;
        }
    } else {
        std::iota(positions, positions + n_tokens, first);
    }
    for (int32_t i = 0; units && i < n_tokens; ++i) {
        const auto place = (size_t) (positions[i] - first);
        if (place >= units->kept.size()) {
            fprintf(stderr, "pyfastv: the places of a picture's %d tokens are not known: another was encoded last\n", n_tokens);
            return false;
        }
        positions[i] = first + units->kept[place];
    }
    return true;
}

bool begin_chunk(const mtmd_context * ctx, llama_context * lctx, const mtmd_input_chunk * chunk, llama_pos n_past, llama_pos * positions) {
    const auto * image    = mtmd_input_chunk_get_tokens_image(chunk); // null for audio
    const auto   n_tokens = (int32_t) mtmd_input_chunk_get_n_tokens(chunk);

    if (image && !mtmd_decode_use_mrope(ctx) && mtmd_input_chunk_get_n_pos(chunk) != n_tokens) {
        if (!picture_positions(ctx, image, n_tokens, n_past, positions)) {
            return false;
        }
        pyfastv_allow_position_gaps(lctx);
    }

    int32_t nx = 0, ny = 0;
    auto    media = PYFASTV_MEDIA_AUDIO;
    if (image) {
        mtmd_image_tokens_get_shape(ctx, image, &nx, &ny);
        media = mtmd_image_tokens_get_slice(image) > 0 ? PYFASTV_MEDIA_SLICE : PYFASTV_MEDIA_IMAGE;
    }
    pyfastv_begin_media(lctx, media, mtmd_input_chunk_get_id(chunk), nx, ny);
    return true;
}

} // namespace pyfastv
