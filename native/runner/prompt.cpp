#include "runner/prompt.h"

#include "runner/answers.h"
#include "runner/errors.h"
#include "runner/log.h"
#include "runner/pixels.h"
#include "runner/text_length.h"

#include "choose/grid.h"
#include "vision/picture_shape.h"

#include "pyfastv_skip.h"
#include "pyfastv_turbo.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <tuple>

// libmtmd, native/vision/inside_mtmd.h
MTMD_API void mtmd_image_tokens_set_slice(mtmd_image_tokens * image_tokens, int32_t slice);
void mtmd_image_tokens_get_shape(const mtmd_context * ctx, const mtmd_image_tokens * image_tokens, int32_t * nx, int32_t * ny);
MTMD_API int32_t mtmd_n_frames_at_once(const mtmd_context * ctx);

namespace pyfastv {
namespace {

std::vector<patch_grid> patches_of(const mtmd_context * vision, const prompt_piece & piece) {
    const auto *  tokens = mtmd_input_chunk_get_tokens_image(piece.chunk);
    const int32_t n      = pyfastv_turbo_patches(tokens);

    int32_t nx = 0;
    int32_t ny = 0;
    if (n == piece.n_encoded) {
        mtmd_image_tokens_get_shape(vision, tokens, &nx, &ny);
    } else {
        std::tie(nx, ny) = size_of(vision, piece.chunk); // what was merged has no shape
    }
    return grids_from(n, nx, ny);
}

// A stretch of the text, in bytes, in which names of control tokens are tokens and markers pictures, or both are text.
struct stretch {
    size_t begin;
    size_t end;
    bool   special;
};

std::vector<stretch> stretches_of(const std::string & text, const std::vector<span> & literal) {
    std::vector<stretch> res;

    size_t     at  = 0;
    const auto add = [&](size_t end, bool special) {
        if (at < end) {
            res.push_back({ at, end, special });
        }
        at = end;
    };
    for (const auto & each : literal) {
        if (each.begin < at || each.end < each.begin || each.end > text.size()) {
            throw error(error_kind::option, "literal: [" + std::to_string(each.begin) + ", " + std::to_string(each.end) +
                    ") is no stretch of a prompt of " + std::to_string(text.size()) + " bytes behind the one before it");
        }
        add(each.begin, true);
        add(each.end, false);
    }
    add(text.size(), true);

    return res;
}

// where the markers of pictures begin
std::vector<size_t> find_markers(const std::string & text, const std::vector<stretch> & stretches, const std::string & marker) {
    std::vector<size_t> res;
    for (const auto & each : stretches) {
        size_t at = each.special ? text.find(marker, each.begin) : std::string::npos;
        while (at != std::string::npos && at + marker.size() <= each.end) {
            res.push_back(at);
            at = text.find(marker, at + marker.size());
        }
    }
    return res;
}

void add_tokens(prompt & res, const llama_token * tokens, size_t n_tokens, int64_t n_ctx) {
    check_text_tokens(res.n_tokens - res.n_visual + (int64_t) n_tokens, n_ctx);
    for (size_t i = 0; i < n_tokens; ++i) {
        prompt_piece piece;
        piece.token = tokens[i];
        res.pieces.push_back(std::move(piece));
    }
    res.n_tokens += n_tokens;
}

// a vocabulary without some of the bytes
error no_token() {
    return error(error_kind::model, "the model has no token for a part of the prompt: its vocabulary (tokenizer.ggml.tokens) is damaged");
}

// llama.cpp aborts where a vocabulary has not what its tokenizer wants
void check_vocabulary(const llama_vocab * vocab, bool add_special) {
    const auto type   = llama_vocab_type(vocab);
    const bool is_wpm = type == LLAMA_VOCAB_TYPE_WPM;

    const char * missing = nullptr;
    if (type == LLAMA_VOCAB_TYPE_NONE) {
        throw error(error_kind::model, "the model has no vocabulary: it cannot read text");
    }
    if (add_special) {
        missing = (is_wpm || llama_vocab_get_add_bos(vocab)) && llama_vocab_bos(vocab) == LLAMA_TOKEN_NULL ? "begin (BOS)" : missing;
        missing = llama_vocab_get_add_eos(vocab) && llama_vocab_eos(vocab) == LLAMA_TOKEN_NULL ? "end (EOS)" : missing;
        missing = is_wpm && llama_vocab_sep(vocab) == LLAMA_TOKEN_NULL ? "separation (SEP)" : missing;
    }
    if (missing) {
        throw error(error_kind::model, std::string("the model's vocabulary adds a token of ") + missing + " to a text, but has none");
    }
}

std::vector<llama_token> tokens_of(const llama_vocab * vocab, const char * text, size_t size, bool add_special, bool parse_special) {
    std::vector<llama_token> tokens(size + 2);

    const auto fill = [&] {
        try {
            return llama_tokenize(vocab, text, size, tokens.data(), tokens.size(), add_special, parse_special);
        } catch (const std::out_of_range &) {
            throw no_token();
        }
    };
    int32_t n = fill();
    if (n < 0 && n != INT32_MIN) {
        tokens.resize(-(int64_t) n); // a vocabulary may have several tokens for one byte: "\u2581" in bytes, for a space
        n = fill();
    }
    if (n < 0) {
        throw error(error_kind::option, "the prompt cannot be tokenized");
    }
    tokens.resize(n);

    return tokens;
}

prompt tokenize_text(const llama_vocab * vocab, const std::string & text, const std::vector<stretch> & stretches, bool add_bos, int64_t n_ctx) {
    prompt     res;
    const auto add = [&](const std::vector<llama_token> & tokens) { add_tokens(res, tokens.data(), tokens.size(), n_ctx); };

    if (stretches.size() < 2 && (stretches.empty() || stretches[0].special)) {
        add(tokens_of(vocab, text.data(), text.size(), add_bos, true));
        return res;
    }
    // what llama.cpp puts around a text as a whole
    const bool is_wpm = llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_WPM;

    if (add_bos && (is_wpm || llama_vocab_get_add_bos(vocab))) {
        add({ llama_vocab_bos(vocab) });
    }
    for (const auto & each : stretches) {
        add(tokens_of(vocab, text.data() + each.begin, each.end - each.begin, false, each.special));
    }
    if (add_bos && (is_wpm || llama_vocab_get_add_eos(vocab))) {
        add({ is_wpm ? llama_vocab_sep(vocab) : llama_vocab_eos(vocab) });
    }
    return res;
}

// [picture] whether it is encoded as one with the next: frames of one video that follow each other, two by two, as models that
// take two at once were trained. Never pictures, nor where there is text between them.
std::vector<bool> pairs_of(const mtmd_context * vision, const std::vector<image> & images, const std::string & text,
        const std::vector<stretch> & stretches, const std::vector<size_t> & markers, size_t marker_size) {
    std::vector<bool> res(images.size(), false);

    const auto follows = [&](size_t i) {
        const auto & a = images[i - 1];
        const auto & b = images[i];
        return b.id == a.id && b.frame == (int64_t) a.frame + 1 && b.width == a.width && b.height == a.height;
    };
    // some templates write lines between pictures
    const auto only_space = [&](size_t begin, size_t end) {
        return text.find_first_not_of(" \t\r\n", begin) >= end && std::none_of(stretches.begin(), stretches.end(), [&](const stretch & s) {
            return begin < s.begin && s.begin <= end;
        });
    };
    const size_t n = mtmd_n_frames_at_once(vision) == 2 ? images.size() : 0;
    for (size_t i = 1; i < n; ++i) {
        if (i < 2 || !res[i - 2]) {
            res[i - 1] = follows(i) && only_space(markers[i - 1] + marker_size, markers[i]);
        }
    }
    return res;
}

const std::string NOT_ENLARGED = "/not enlarged"; // in what tells pictures apart

// of so many frames that are encoded as one, from `first` on
std::string content_of(const std::vector<image> & images, size_t first, int32_t n_frames) {
    std::string res;
    for (size_t i = first; i < first + n_frames; ++i) {
        const auto & each = images[i];
        const auto   known = each.frame == 0 ? each.id : each.id + "." + std::to_string(each.frame);
        res += (i > first ? "+" : "") + (each.content.empty() ? known : each.content);
    }
    return res + (images[first].enlarge ? "" : NOT_ENLARGED);
}

// libmtmd's, with a picture for each marker that is none's text; nothing between the frames of a pair
int32_t tokenize_stretches(const mtmd_context * vision, mtmd_input_chunks * chunks, const std::string & text,
        const std::vector<stretch> & stretches, const std::vector<size_t> & markers, size_t marker_size, bool add_bos,
        const std::vector<const mtmd_bitmap *> & bitmaps, const std::vector<bool> & pairs) {
    std::vector<mtmd_input_text> texts;
    std::vector<mtmd_input_part> parts;
    texts.reserve(stretches.size() + markers.size()); // parts point into it

    size_t n_pictures = 0;
    for (const auto & each : stretches) {
        size_t     at  = each.begin;
        const auto add = [&](size_t end) {
            if (at < end) {
                texts.push_back({ text.data() + at, end - at, /* add_special */ false, /* parse_special */ each.special });
                parts.push_back({ &texts.back(), nullptr });
            }
        };
        for (; n_pictures < markers.size() && markers[n_pictures] < each.end; n_pictures++) {
            if (n_pictures == 0 || !pairs[n_pictures - 1]) {
                add(markers[n_pictures]);
            }
            parts.push_back({ nullptr, bitmaps[n_pictures] });
            at = markers[n_pictures] + marker_size;
        }
        add(each.end);
    }

    std::vector<const mtmd_input_part *> pointers;
    for (const auto & each : parts) {
        pointers.push_back(&each);
    }
    return mtmd_tokenize_from_parts(vision, chunks, pointers.data(), pointers.size(), add_bos);
}

} // namespace

bool prompt_piece::whole() const {
    return n_encoded >= std::accumulate(patches.begin(), patches.end(), (int64_t) 0,
            [](int64_t n, const patch_grid & grid) { return n + (int64_t) grid.nx*grid.ny; });
}

std::vector<int32_t> places_of(const prompt_piece & evaluated) {
    auto res = evaluated.places;
    if (res.empty()) {
        res.resize(evaluated.n_tokens);
        std::iota(res.begin(), res.end(), 0);
    }
    return res;
}

size_t prompt::end_of_turn(size_t piece) const {
    for (const auto & answer : answers) {
        if (piece < answer.end) {
            return piece < answer.begin ? answer.begin : answer.end;
        }
    }
    return pieces.size();
}

size_t prompt::end_of_pictures() const {
    const auto last = std::find_if(pieces.rbegin(), pieces.rend(), [](const prompt_piece & piece) { return piece.visual(); });
    return pieces.rend() - last;
}

bool prompt::in_answer(size_t piece) const {
    return std::any_of(answers.begin(), answers.end(), [piece](const span & s) { return s.begin <= piece && piece < s.end; });
}

bool prompt::asked_before(size_t piece) const {
    return piece == pieces.size() || std::any_of(answers.begin(), answers.end(), [piece](const span & s) { return s.begin == piece; });
}

std::vector<llama_token> tokens_of(const llama_model * model, const std::string & text, bool add_special, bool parse_special,
        int64_t n_ctx) {
    const auto * vocab = llama_model_get_vocab(model);

    check_vocabulary(vocab, add_special);
    check_text_length(model, text, 0, n_ctx);

    return tokens_of(vocab, text.data(), text.size(), add_special, parse_special);
}

void check_tokens(const llama_vocab * vocab, const std::vector<llama_token> & tokens) {
    const int32_t n_vocab = llama_vocab_n_tokens(vocab);

    for (const auto token : tokens) {
        if (token < 0 || token >= n_vocab) {
            throw error(error_kind::option, "token " + std::to_string(token) + " is out of range: the vocabulary has " +
                    std::to_string(n_vocab) + " tokens");
        }
    }
}

prompt prompt_of(const llama_vocab * vocab, const std::vector<llama_token> & tokens, int64_t n_ctx) {
    check_tokens(vocab, tokens);

    prompt res;
    add_tokens(res, tokens.data(), tokens.size(), n_ctx);

    return res;
}

prompt tokenize(const llama_model * model, const mtmd_context * vision, const picture_options & how, const std::string & marker,
        const std::string & text, const std::vector<image> & images, bool add_bos, int64_t n_ctx, const text_spans & spans) {
    const auto   stretches = stretches_of(text, spans.literal);
    const auto   markers   = find_markers(text, stretches, marker);
    const size_t n_markers = markers.size();
    if (n_markers != images.size()) {
        throw error(error_kind::option, "the prompt has places for " + std::to_string(n_markers) + " pictures, but " +
                std::to_string(images.size()) + " were given");
    }
    check_vocabulary(llama_model_get_vocab(model), add_bos);
    check_text_length(model, text, n_markers*marker.size(), n_ctx);
    if (images.empty()) {
        return tokenize_text(llama_model_get_vocab(model), text, stretches, add_bos, n_ctx);
    }
    if (!vision) {
        throw error(error_kind::option, "the prompt has a picture, but the model was loaded without an mmproj file");
    }

    const auto pairs = pairs_of(vision, images, text, stretches, markers, marker.size());

    std::vector<std::unique_ptr<mtmd_bitmap, mtmd_deleter>> bitmaps;
    std::vector<const mtmd_bitmap *> pointers;
    for (size_t i = 0; i < images.size(); ++i) {
        bitmaps.emplace_back(mtmd_bitmap_init(images[i].width, images[i].height, images[i].rgb));
        mtmd_bitmap_set_id(bitmaps.back().get(), std::to_string(i).c_str()); // its chunks have it
        mtmd_bitmap_set_mergeable(bitmaps.back().get(), pairs[i] || (i > 0 && pairs[i - 1]));
        pyfastv_set_enlarge(bitmaps.back().get(), images[i].enlarge);
        pointers.push_back(bitmaps.back().get());
    }

    prompt res;
    res.chunks.reset(mtmd_input_chunks_init());

    const log_scope       log(false);
    const mtmd_input_text input = { text.data(), text.size(), add_bos, /* parse_special */ true };

    const bool    as_it_is = spans.literal.empty() && std::count(pairs.begin(), pairs.end(), true) == 0;
    const int32_t status   = as_it_is ?
        mtmd_tokenize(vision, res.chunks.get(), &input, pointers.data(), pointers.size()) :
        tokenize_stretches(vision, res.chunks.get(), text, stretches, markers, marker.size(), add_bos, pointers, pairs);
    if (status != 0) {
        // std::out_of_range, by its text
        throw log.reason("").find("::at") != std::string::npos ? no_token() :
            log.failure(error_kind::image, "the picture cannot be prepared for the vision encoder");
    }

    // the number tells pictures of one prompt apart that are the same: the slices of one have one id
    std::vector<std::string> ids;
    int32_t                  n_pictures = 0;
    for (const auto & picture : images) {
        n_pictures += picture.frame == 0;
        ids.push_back(picture.id + (picture.enlarge ? "#" : NOT_ENLARGED + "#") + std::to_string(n_pictures));
    }
    std::vector<int32_t> n_tiles(images.size(), 0);

    for (size_t i = 0; i < mtmd_input_chunks_size(res.chunks.get()); ++i) {
        const auto * chunk = mtmd_input_chunks_get(res.chunks.get(), i);

        if (mtmd_input_chunk_get_type(chunk) == MTMD_INPUT_CHUNK_TYPE_TEXT) {
            size_t       n_tokens = 0;
            const auto * tokens   = mtmd_input_chunk_get_tokens_text(chunk, &n_tokens);
            add_tokens(res, tokens, n_tokens, n_ctx);
            continue;
        }

        prompt_piece piece;
        const size_t picture = std::stoul(mtmd_input_chunk_get_id(chunk));
        piece.image_id = ids[picture];
        piece.n_frames = pairs[picture] ? 2 : 1;
        piece.content  = content_of(images, picture, piece.n_frames) + "/" + std::to_string(n_tiles[picture]++);
        piece.slice    = std::count_if(res.pieces.begin(), res.pieces.end(), [&](const prompt_piece & p) { return p.image_id == piece.image_id; });
        // to libmtmd every frame of a video is a picture
        const auto * tokens = mtmd_input_chunk_get_tokens_image(chunk);
        mtmd_image_tokens_set_slice(const_cast<mtmd_image_tokens *>(tokens), piece.slice);
        const size_t n_left = pyfastv_skip_places(tokens, nullptr, 0); // 0: nothing was left out
        piece.n_encoded = mtmd_input_chunk_get_n_tokens(chunk);
        piece.n_tokens  = piece.n_encoded;
        piece.n_pos     = mtmd_input_chunk_get_n_pos(chunk);
        piece.chunk     = chunk;
        piece.turbo     = how.turbo;
        piece.skip      = n_left > 0 ? how.skip : "";
        piece.patches   = patches_of(vision, piece);

        res.n_tokens  += piece.n_tokens;
        res.n_visual  += piece.n_tokens;
        res.n_encoded += piece.n_encoded;
        res.n_patches += pyfastv_turbo_patches(tokens);
        res.n_skipped += n_left > 0 ? pyfastv_turbo_patches(tokens) - (int64_t) n_left : 0;
        res.pieces.push_back(std::move(piece));
    }
    res.answers = pieces_of(spans.answers, text, marker, res.pieces, llama_model_get_vocab(model));

    return res;
}

} // namespace pyfastv
