// engine: fewer visual tokens between the vision encoder and the language model

#include "runner/engine.h"

#include "runner/errors.h"
#include "runner/log.h"

#include "choose/grid.h"

#include "ggml.h"
#include "mtmd.h"

#include <algorithm>
#include <new>
#include <numeric>
#include <stdexcept>

// libmtmd, third_party/patches
void mtmd_image_tokens_get_shape(const mtmd_context * ctx, const mtmd_image_tokens * image_tokens, int32_t * nx, int32_t * ny);

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

std::vector<patch_grid> grids_of(const mtmd_context * vision, const prompt_piece & piece) {
    int32_t nx = 0, ny = 0;
    mtmd_image_tokens_get_shape(vision, mtmd_input_chunk_get_tokens_image(piece.chunk), &nx, &ny);

    return grids_from(piece.n_encoded, nx, ny);
}

// the pieces that are slices of the same picture
std::vector<size_t> slices_of(const prompt & prompt, size_t piece) {
    std::vector<size_t> res;
    for (size_t i = 0; i < prompt.pieces.size(); ++i) {
        if (prompt.pieces[i].visual() && prompt.pieces[i].image_id == prompt.pieces[piece].image_id) {
            res.push_back(i);
        }
    }
    return res;
}

// what stands behind a picture, up to the next one
std::vector<llama_token> text_behind(const prompt & prompt, size_t last_slice) {
    std::vector<llama_token> res;
    for (size_t i = last_slice + 1; i < prompt.pieces.size() && !prompt.pieces[i].visual(); ++i) {
        res.push_back(prompt.pieces[i].token);
    }
    return res;
}

template <typename F>
auto option_checked(F && f) {
    try {
        return f();
    } catch (const std::invalid_argument & err) {
        throw error(error_kind::option, std::string("reduce: ") + err.what());
    }
}

} // namespace

void engine::set_reducer(const std::string & spec) {
    const auto how = option_checked([&] { return parse_reducer(spec); });

    if (how.asks()) {
        embedding_of({ 0 }); // throws if there is no table
    }
    if (!how.renumber && !gaps) {
        pyfastv_allow_position_gaps(ctx.get());
        gaps = true;
    }
    reduction = how;
}

void engine::clear_reducer() {
    reduction.reset();
}

void engine::plan_reduction(prompt & prompt) const {
    if (!reduction) {
        return;
    }
    const auto spec = to_text(*reduction);

    for (size_t i = 0; i < prompt.pieces.size(); ++i) {
        const auto & piece = prompt.pieces[i];
        if (!piece.visual() || !piece.reducer.empty() || !mtmd_input_chunk_get_tokens_image(piece.chunk)) {
            continue;
        }

        const auto slices   = slices_of(prompt, i);
        const auto question = reduction->asks() ? text_behind(prompt, slices.back()) : std::vector<llama_token> {};

        std::vector<patch_grid> grids;
        for (const size_t s : slices) {
            const auto more = grids_of(vision.get(), prompt.pieces[s]);
            grids.insert(grids.end(), more.begin(), more.end());

            prompt.pieces[s].reducer  = spec;
            prompt.pieces[s].question = question;
            prompt.n_tokens -= prompt.pieces[s].n_encoded;
            prompt.n_visual -= prompt.pieces[s].n_encoded;
        }
        const auto n = (int64_t) option_checked([&] { return count_reduced(*reduction, grids); });
        prompt.n_tokens += n;
        prompt.n_visual += n;
    }
}

bool engine::question_follows(const prompt_piece & evaluated, const prompt & prompt, size_t piece) const {
    if (evaluated.question.empty()) {
        return true;
    }
    const auto text = text_behind(prompt, slices_of(prompt, piece).back());

    return text.size() >= evaluated.question.size() && std::equal(evaluated.question.begin(), evaluated.question.end(), text.begin());
}

engine::reduced_picture engine::reduce_picture(prompt & prompt, size_t piece, const std::function<void(size_t)> & tell) {
    const int64_t d = llama_model_n_embd_inp(model.get());

    reduced_picture res;
    res.pieces = slices_of(prompt, piece);

    visual_embeddings  in;
    std::vector<float> values, question;

    std::vector<size_t>  piece_of;  // [slice] index in res.pieces
    std::vector<int32_t> places;    // [n] in their piece

    in.d = d;
    for (size_t k = 0; k < res.pieces.size(); ++k) {
        const auto & slice   = prompt.pieces[res.pieces[k]];
        const auto & encoded = encode(slice);

        auto grids = grids_of(vision.get(), slice);
        if (!encoded.places.empty()) {
            grids = { { slice.n_encoded, 1 } }; // what was merged before is no grid
            places.insert(places.end(), encoded.places.begin(), encoded.places.end());
        } else {
            places.resize(places.size() + slice.n_encoded);
            std::iota(places.end() - slice.n_encoded, places.end(), 0);
        }
        in.slices.insert(in.slices.end(), grids.begin(), grids.end());
        piece_of.insert(piece_of.end(), grids.size(), k);
        values.insert(values.end(), encoded.values.begin(), encoded.values.end());

        if (stop_requested()) {
            throw interrupted();
        }
        tell(option_checked([&] { return count_reduced(*reduction, in.slices); })*(k + 1)/res.pieces.size());
    }
    in.values = values.data();

    const int64_t t0 = ggml_time_us();

    if (reduction->asks()) {
        question      = embedding_of(prompt.pieces[piece].question);
        in.question   = question.data();
        in.n_question = (int64_t) question.size();
    }
    const auto reduced = option_checked([&] { return reduce(*reduction, in, cpu()); });

    res.values.resize(res.pieces.size());
    res.places.resize(res.pieces.size());
    res.shapes.resize(res.pieces.size(), { 0, 1 });

    for (size_t o = 0; o < reduced.place.size(); ++o) {
        const size_t k = piece_of[(size_t) slice_of(in.slices, reduced.place[o])];
        res.values[k].insert(res.values[k].end(), reduced.values.begin() + o*d, reduced.values.begin() + (o + 1)*d);
        res.places[k].push_back(places[reduced.place[o]]);
    }
    for (size_t s = 0; s < reduced.slices.size(); ++s) {
        auto & shape = res.shapes[piece_of[s]];
        const auto & part = reduced.slices[s];
        const bool   alone = std::count(piece_of.begin(), piece_of.end(), piece_of[s]) == 1;
        shape = alone ? part : patch_grid { shape.nx + part.nx*part.ny, 1 };
    }
    for (size_t k = 0; k < res.pieces.size(); ++k) {
        auto & slice = prompt.pieces[res.pieces[k]];
        slice.n_tokens = (int32_t) res.places[k].size();
        slice.n_pos    = reduction->renumber ? slice.n_tokens : slice.n_pos;
    }

    counts.reduce_ms += (ggml_time_us() - t0)/1000.0;

    return res;
}

void engine::decode_reduced(const prompt_piece & piece, const std::vector<float> & values, const std::vector<int32_t> & places, const patch_grid & shape) {
    const log_scope log(options.verbose);

    check_non_causal(piece);

    if (stop_requested()) {
        throw interrupted();
    }

    const int64_t d     = llama_model_n_embd_inp(model.get());
    const bool    mrope = mtmd_decode_use_mrope(vision.get());
    const auto *  image = mtmd_input_chunk_get_tokens_image(piece.chunk);

    const auto position_of = [&](size_t i) -> mtmd_decoder_pos {
        const auto pos = (uint32_t) (n_past + (int32_t) i);
        if (reduction->renumber) {
            return { pos, pos, pos, 0 };
        }
        const auto place = (uint32_t) (n_past + places[i]);
        return mrope ? mtmd_image_tokens_get_decoder_pos(image, n_past, places[i]) : mtmd_decoder_pos { place, 0, 0, 0 };
    };

    const non_causal_scope non_causal(ctx.get(), mtmd_decode_use_non_causal(vision.get(), piece.chunk));

    pyfastv_begin_media(ctx.get(), PYFASTV_MEDIA_IMAGE, mtmd_input_chunk_get_id(piece.chunk), shape.nx, shape.ny);

    time_full([&] {
        const size_t n_batch = llama_n_batch(ctx.get());
        for (size_t first = 0; first < places.size(); first += n_batch) {
            const size_t n = std::min(n_batch, places.size() - first);

            // [n], for M-RoPE t, y, x and one more, [4, n]
            std::vector<llama_pos> pos(mrope ? 4*n : n);
            for (size_t i = 0; i < n; ++i) {
                const auto at = position_of(first + i);
                pos[i] = (llama_pos) at.t;
                if (mrope) {
                    pos[n   + i] = (llama_pos) at.y;
                    pos[2*n + i] = (llama_pos) at.x;
                    pos[3*n + i] = (llama_pos) at.z;
                }
            }
            std::vector<int8_t> outputs(n, 0);

            llama_batch batch = {};
            batch.n_tokens = (int32_t) n;
            batch.embd     = const_cast<float *>(values.data() + first*d);
            batch.pos      = pos.data();
            batch.logits   = outputs.data();

            check(llama_decode(ctx.get(), batch), log.reason(""));
        }
        llama_synchronize(ctx.get());
    });

    n_past += piece.n_pos;
    evaluated.push_back(piece);
    evaluated.back().chunk  = nullptr;
    evaluated.back().places = places;
}

std::vector<int32_t> engine::places() const {
    std::vector<int32_t> res;
    for (const auto & piece : evaluated) {
        if (piece.visual()) {
            res.insert(res.end(), piece.places.begin(), piece.places.end());
            for (int32_t i = 0; piece.places.empty() && i < piece.n_tokens; ++i) {
                res.push_back(i);
            }
        }
    }
    return res;
}

std::vector<encoded_slice> engine::embed(const image & picture) {
    const auto prompt = tokenize(vocab, vision.get(), media_marker, media_marker, { picture }, false);

    std::vector<encoded_slice> res;
    for (const auto & piece : prompt.pieces) {
        if (piece.visual()) {
            res.push_back(encode(piece));
        }
    }
    return res;
}

std::vector<float> engine::embedding_of(const std::vector<llama_token> & question) const {
    if (question.empty()) {
        throw error(error_kind::option, "reduce: cdpruner needs a question, but there is no text behind the picture");
    }

    const int32_t n_embd = llama_model_n_embd(model.get());

    std::vector<double> sum(n_embd, 0.0);
    std::vector<float>  row(n_embd);
    for (const llama_token token : question) {
        if (!pyfastv_token_embedding(model.get(), token, row.data())) {
            throw error(error_kind::unsupported, "reduce: the model has no table of token embeddings that could be read: use a reducer that does not look at the question");
        }
        for (int32_t k = 0; k < n_embd; ++k) {
            sum[k] += row[k];
        }
    }
    for (int32_t k = 0; k < n_embd; ++k) {
        row[k] = (float) (sum[k]/question.size());
    }
    return row;
}

ggml_backend_t engine::cpu() {
    if (!backend) {
        backend = make_cpu_backend(options.n_threads);
    }
    return backend.get();
}

} // namespace pyfastv
