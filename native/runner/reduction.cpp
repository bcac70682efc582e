#include "runner/reduction.h"

#include "runner/errors.h"

#include "products/products.h"
#include "pyfastv.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace pyfastv {
namespace {

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

// what was merged, or left out of, is no grid
std::vector<patch_grid> grids_of(const prompt_piece & piece) {
    return piece.whole() ? piece.patches : std::vector<patch_grid> { { piece.n_encoded, 1 } };
}

// F32 [n_embd] mean over the tokens
std::vector<float> embedding_of(const llama_model * model, const std::vector<llama_token> & question) {
    if (question.empty()) {
        throw error(error_kind::option, "reduce: cdpruner needs a question, but there is no text behind the picture");
    }

    const int32_t n_embd = llama_model_n_embd(model);

    std::vector<double> sum(n_embd, 0.0);
    std::vector<float>  row(n_embd);
    for (const llama_token token : question) {
        if (!pyfastv_token_embedding(model, token, row.data())) {
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

} // namespace

reducer parse_reducer_for(const llama_model * model, const std::string & spec) {
    const auto res = option_checked([&] { return parse_reducer(spec); }, "reduce: ");

    if (res.asks()) {
        embedding_of(model, { 0 }); // throws if there is no table
    }
    return res;
}

void plan_reduction(prompt & prompt, const reducer & how) {
    const auto spec = to_text(how);

    for (size_t i = 0; i < prompt.pieces.size(); ++i) {
        const auto & piece = prompt.pieces[i];
        if (!piece.visual() || !piece.reducer.empty() || !mtmd_input_chunk_get_tokens_image(piece.chunk)) {
            continue;
        }

        const auto slices   = slices_of(prompt, i);
        const auto question = how.asks() ? text_behind(prompt, slices.back()) : std::vector<llama_token> {};

        for (const size_t s : slices) {
            prompt.pieces[s].reducer  = spec;
            prompt.pieces[s].renumber = how.renumber;
            prompt.pieces[s].question = question;
            prompt.n_tokens -= prompt.pieces[s].n_encoded;
            prompt.n_visual -= prompt.pieces[s].n_encoded;
        }
        const auto n = (int64_t) picture_reduction(prompt, i).n_tokens();
        prompt.n_tokens += n;
        prompt.n_visual += n;
    }
}

bool question_follows(const prompt_piece & evaluated, const prompt & prompt, size_t piece) {
    if (evaluated.question.empty()) {
        return true;
    }
    const auto text = text_behind(prompt, slices_of(prompt, piece).back());

    return text.size() >= evaluated.question.size() && std::equal(evaluated.question.begin(), evaluated.question.end(), text.begin());
}

picture_reduction::picture_reduction(const prompt & prompt, size_t piece) :
        how(parse_reducer(prompt.pieces[piece].reducer)), pieces(slices_of(prompt, piece)) {
    for (size_t k = 0; k < pieces.size(); ++k) {
        const auto & slice = prompt.pieces[pieces[k]];
        const auto   more  = grids_of(slice);

        grids.insert(grids.end(), more.begin(), more.end());
        piece_of.insert(piece_of.end(), more.size(), k);
        n_encoded.push_back(slice.n_encoded);
    }
}

size_t picture_reduction::index_of(size_t piece) const {
    return std::find(pieces.begin(), pieces.end(), piece) - pieces.begin();
}

bool picture_reduction::has(size_t piece) const {
    return index_of(piece) < pieces.size();
}

size_t picture_reduction::n_tokens() const {
    return option_checked([&] { return count_reduced(how, grids); }, "reduce: ");
}

void picture_reduction::add(const encoded_slice & slice) {
    values.insert(values.end(), slice.values.begin(), slice.values.end());

    if (!slice.places.empty()) {
        places.insert(places.end(), slice.places.begin(), slice.places.end());
    } else {
        places.resize(places.size() + n_encoded[added]);
        std::iota(places.end() - n_encoded[added], places.end(), 0);
    }
    added++;
}

bool picture_reduction::run(prompt & prompt, const llama_model * model, ggml_backend_t backend, const stop_fn & stopped) {
    visual_embeddings in;
    in.values = values.data();
    in.d      = llama_model_n_embd_inp(model);
    in.slices = grids;

    std::vector<float> question;
    if (how.asks()) {
        question      = embedding_of(model, prompt.pieces[pieces[0]].question);
        in.question   = question.data();
        in.n_question = (int64_t) question.size();
    }
    reduced_embeddings reduced;
    try {
        reduced = option_checked([&] { return reduce(how, in, backend, stopped); }, "reduce: ");
    } catch (const aborted &) {
        return false;
    }

    std::vector<slice_rows> res(pieces.size());
    for (size_t o = 0; o < reduced.place.size(); ++o) {
        auto & to = res[piece_of[slice_of(grids, reduced.place[o])]];
        to.values.insert(to.values.end(), reduced.values.begin() + o*in.d, reduced.values.begin() + (o + 1)*in.d);
        to.places.push_back(places[reduced.place[o]]);
    }
    for (size_t s = 0; s < reduced.slices.size(); ++s) {
        auto &       shape = res[piece_of[s]].shape;
        const auto & part  = reduced.slices[s];
        const bool   alone = std::count(piece_of.begin(), piece_of.end(), piece_of[s]) == 1;
        shape = alone ? part : patch_grid { shape.nx + part.nx*part.ny, 1 };
    }
    for (size_t k = 0; k < pieces.size(); ++k) {
        auto & slice = prompt.pieces[pieces[k]];
        slice.n_tokens = (int32_t) res[k].places.size();
        slice.n_pos    = how.renumber ? slice.n_tokens : slice.n_pos;
    }

    rows_of = std::move(res);
    values  = {};
    return true;
}

visual_rows picture_reduction::rows(size_t piece) const {
    const auto & slice = rows_of[index_of(piece)];
    return { slice.values, slice.places, slice.shape };
}

} // namespace pyfastv
