#include "runner/pictures.h"

#include "runner/errors.h"

#include "pyfastv.h"

#include <algorithm>
#include <string>

// libmtmd, third_party/patches
void mtmd_image_tokens_get_shape(const mtmd_context * ctx, const mtmd_image_tokens * image_tokens, int32_t * nx, int32_t * ny);
mtmd_decoder_pos mtmd_image_tokens_get_place_pos(const mtmd_image_tokens * image_tokens, llama_pos pos_0, int32_t place);

namespace pyfastv {
namespace {

class non_causal_scope {
public:
    non_causal_scope(llama_context * ctx, bool enabled) : ctx(enabled ? ctx : nullptr) {
        if (enabled) {
            llama_set_causal_attn(ctx, false);
        }
    }
    ~non_causal_scope() {
        if (ctx) {
            llama_set_causal_attn(ctx, true);
        }
    }
    non_causal_scope(const non_causal_scope &) = delete;

private:
    llama_context * ctx;
};

mtmd_decoder_pos position_of(const mtmd_context * vision, const prompt_piece & piece, const std::vector<int32_t> & places, llama_pos n_past, size_t i) {
    const auto place = places.empty() ? (int32_t) i : places[i];

    if (piece.renumber) {
        const auto pos = (uint32_t) (n_past + (llama_pos) i);
        return { pos, pos, pos, 0 };
    }
    if (mtmd_decode_use_mrope(vision)) {
        return mtmd_image_tokens_get_place_pos(mtmd_input_chunk_get_tokens_image(piece.chunk), n_past, place);
    }
    return { (uint32_t) (n_past + place), 0, 0, 0 };
}

void begin_media(llama_context * ctx, const mtmd_context * vision, const prompt_piece & piece, const visual_rows & rows) {
    auto shape = rows.shape;
    if (piece.whole() && piece.reducer.empty()) {
        mtmd_image_tokens_get_shape(vision, mtmd_input_chunk_get_tokens_image(piece.chunk), &shape.nx, &shape.ny);
    }
    const auto media = piece.slice > 0 ? PYFASTV_MEDIA_SLICE : PYFASTV_MEDIA_IMAGE;
    pyfastv_begin_media(ctx, media, piece.image_id.c_str(), shape.nx, shape.ny);
}

} // namespace

void check_fits_ubatch(const mtmd_context * vision, const llama_context * ctx, const prompt_piece & piece) {
    if (mtmd_decode_use_non_causal(vision, piece.chunk) && (uint32_t) piece.n_tokens > llama_n_ubatch(ctx)) {
        throw error(error_kind::option, "this model reads a picture of " + std::to_string(piece.n_tokens) +
                " tokens at once, but n_ubatch is " + std::to_string(llama_n_ubatch(ctx)) + ": use a larger n_ubatch (and n_batch)");
    }
}

size_t n_rows_at_once(const mtmd_context * vision, const llama_context * ctx, const prompt_piece & piece, size_t first) {
    const size_t n = piece.n_tokens, n_batch = llama_n_batch(ctx);

    if (mtmd_decode_use_non_causal(vision, piece.chunk)) {
        return n - first;
    }
    // ubatches of batches, as libmtmd decodes a picture: ggml's kernels round by the number of rows
    return std::min({ n, first + llama_n_ubatch(ctx), (first/n_batch + 1)*n_batch }) - first;
}

int32_t decode_picture(llama_context * ctx, mtmd_context * vision, const prompt_piece & piece, const visual_rows & rows,
        llama_pos n_past, llama_seq_id seq_id, size_t first, size_t n) {
    const size_t n_embd = llama_model_n_embd_inp(llama_get_model(ctx));
    const bool   mrope  = mtmd_decode_use_mrope(vision);

    const non_causal_scope non_causal(ctx, mtmd_decode_use_non_causal(vision, piece.chunk));

    if (piece.n_pos != piece.n_tokens) {
        pyfastv_allow_position_gaps(ctx);
    }
    if (n == 0) {
        return 0; // a slice that a reducer left nothing of
    }
    if (first == 0) {
        begin_media(ctx, vision, piece, rows);
    } else {
        pyfastv_continue_media(ctx);
    }

    // [n], for M-RoPE t, y, x and one more, [4, n]
    std::vector<llama_pos> pos(mrope ? 4*n : n);
    for (size_t i = 0; i < n; ++i) {
        const auto at = position_of(vision, piece, rows.places, n_past, first + i);
        pos[i] = (llama_pos) at.t;
        if (mrope) {
            pos[n   + i] = (llama_pos) at.y;
            pos[2*n + i] = (llama_pos) at.x;
            pos[3*n + i] = (llama_pos) at.z;
        }
    }
    std::vector<int8_t>         outputs(n, 0);
    std::vector<int32_t>        n_seq_id(n, 1);
    std::vector<llama_seq_id *> seq_ids(n, &seq_id);

    llama_batch batch = {};
    batch.n_tokens = (int32_t) n;
    batch.embd     = const_cast<float *>(rows.values.data() + first*n_embd);
    batch.pos      = pos.data();
    batch.n_seq_id = n_seq_id.data();
    batch.seq_id   = seq_ids.data();
    batch.logits   = outputs.data();

    return llama_decode(ctx, batch);
}

} // namespace pyfastv
