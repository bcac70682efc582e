#include "runner/pictures.h"

#include "runner/errors.h"

#include "mtmd-helper.h"
#include "pyfastv.h"

#include <algorithm>
#include <string>

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
    if (piece.renumber || places.empty()) {
        const auto pos = (uint32_t) (n_past + (llama_pos) i);
        return { pos, pos, pos, 0 };
    }
    if (mtmd_decode_use_mrope(vision)) {
        return mtmd_image_tokens_get_decoder_pos(mtmd_input_chunk_get_tokens_image(piece.chunk), n_past, places[i]);
    }
    return { (uint32_t) (n_past + places[i]), 0, 0, 0 };
}

} // namespace

void check_fits_ubatch(const mtmd_context * vision, const llama_context * ctx, const prompt_piece & piece) {
    if (mtmd_decode_use_non_causal(vision, piece.chunk) && (uint32_t) piece.n_tokens > llama_n_ubatch(ctx)) {
        throw error(error_kind::option, "this model reads a picture of " + std::to_string(piece.n_tokens) +
                " tokens at once, but n_ubatch is " + std::to_string(llama_n_ubatch(ctx)) + ": use a larger n_ubatch (and n_batch)");
    }
}

int32_t decode_picture(llama_context * ctx, mtmd_context * vision, const prompt_piece & piece, const visual_rows & rows,
        llama_pos n_past, llama_seq_id seq_id) {
    if (piece.turbo.empty() && piece.reducer.empty()) {
        llama_pos end = n_past;
        return mtmd_helper_decode_image_chunk(vision, ctx, piece.chunk, const_cast<float *>(rows.values.data()), n_past, seq_id,
                llama_n_batch(ctx), &end, nullptr, nullptr);
    }

    const size_t n_embd  = llama_model_n_embd_inp(llama_get_model(ctx));
    const size_t n_rows  = piece.n_tokens;
    const size_t n_batch = llama_n_batch(ctx);
    const bool   mrope   = mtmd_decode_use_mrope(vision);

    const non_causal_scope non_causal(ctx, mtmd_decode_use_non_causal(vision, piece.chunk));

    if (piece.n_pos != piece.n_tokens) {
        pyfastv_allow_position_gaps(ctx);
    }
    pyfastv_begin_media(ctx, piece.slice > 0 ? PYFASTV_MEDIA_SLICE : PYFASTV_MEDIA_IMAGE, piece.image_id.c_str(), rows.shape.nx,
            rows.shape.ny);

    for (size_t first = 0; first < n_rows; first += n_batch) {
        const size_t n = std::min(n_batch, n_rows - first);

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

        if (const int32_t result = llama_decode(ctx, batch); result != 0) {
            return result;
        }
    }
    return 0;
}

} // namespace pyfastv
