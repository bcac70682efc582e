#pragma once

#include "choose/choose.h"
#include "runner/options.h"

#include "llama.h"
#include "mtmd.h"

#include <memory>
#include <string>
#include <vector>

namespace pyfastv {

struct mtmd_deleter {
    void operator()(mtmd_context      * p) const { mtmd_free(p); }
    void operator()(mtmd_input_chunks * p) const { mtmd_input_chunks_free(p); }
    void operator()(mtmd_bitmap       * p) const { mtmd_bitmap_free(p); }
};
using mtmd_context_ptr = std::unique_ptr<mtmd_context, mtmd_deleter>;
using mtmd_chunks_ptr  = std::unique_ptr<mtmd_input_chunks, mtmd_deleter>;

// A piece of a prompt: one text token, or one picture.
struct prompt_piece {
    llama_token token    = LLAMA_TOKEN_NULL; // text
    std::string image_id;                    // picture: image::id and its number in the prompt, the same for all slices
    int32_t     slice    = 0;                // picture: number of the slice
    std::string content;                     // picture: what of which pixels is encoded, image::content of one frame or of two
    int32_t     n_frames  = 1;               // of a video that are encoded as one
    int32_t     n_encoded = 1;               // tokens that the encoder makes
    int32_t     n_tokens  = 1;               // tokens that enter the language model
    int32_t     n_pos     = 1;

    // picture: what merges it in the encoder, what reduces it behind, and what left something of it out before, as text; empty:
    // nothing
    std::string              turbo;
    std::string              reducer;
    std::string              skip;
    bool                     renumber = false; // by the reducer: positions one after another
    std::vector<llama_token> question;         // of a reducer that asks

    std::vector<patch_grid> patches; // picture: what it has; they sum to the tokens that the encoder would make of all of it without Turbo
    std::vector<int32_t>    places;  // once evaluated: [n_tokens] the patches whose positions they have; empty: their own

    const mtmd_input_chunk * chunk = nullptr; // picture: owned by the prompt

    bool visual() const { return token == LLAMA_TOKEN_NULL; }
    bool whole() const; // of a picture: the encoder's tokens form its grids, since it left nothing out and merged nothing
    bool same_as(const prompt_piece & other) const {
        return token == other.token && image_id == other.image_id && slice == other.slice && content == other.content && n_encoded == other.n_encoded && turbo == other.turbo && reducer == other.reducer &&
            skip == other.skip;
    }
    // the same for the same pixels anywhere
    std::string encoder_key() const {
        return content + "/" + std::to_string(n_encoded) + "/" + turbo + "/" + skip;
    }
};

// [begin, end)
struct span {
    size_t begin;
    size_t end;
};

// Of a prompt's text, in bytes, ascending.
struct text_spans {
    // of earlier turns: a question behind a picture that was answered chooses, and later ones recall, as when each was asked
    std::vector<span> answers;
    // where names of control tokens, and media markers, are text
    std::vector<span> literal;
};

struct prompt {
    mtmd_chunks_ptr           chunks; // owns the pictures; null for text alone
    std::vector<prompt_piece> pieces;
    std::vector<span>         answers; // of earlier turns, in pieces, ascending: what is asked of a picture ends where one begins

    int64_t n_tokens  = 0;
    int64_t n_visual  = 0;
    int64_t n_encoded = 0; // visual tokens before they are reduced
    int64_t n_patches = 0; // visual tokens before they are merged, and those that are left out
    int64_t n_skipped = 0; // those

    // Of text from a piece on, how far it is computed as one: to the end of a question, of its answer, or of the prompt.
    size_t end_of_turn(size_t piece) const;

    // the piece behind the last picture; 0: there is none
    size_t end_of_pictures() const;

    bool in_answer   (size_t piece) const;
    bool asked_before(size_t piece) const; // a question ends there
};

// Of every token of a picture's slice, which was evaluated: the patch whose position it has.
std::vector<int32_t> places_of(const prompt_piece & evaluated);

// Throws error(option) if the media markers and the pictures do not match, error(image) if a picture cannot be prepared,
// error(context_length) if the text alone has more than n_ctx tokens, error(model) if the vocabulary cannot spell it.
// vision may be null if there are no pictures; it has the Turbo that `how` says, and leaves out what that says.
prompt tokenize(const llama_model * model, const mtmd_context * vision, const picture_options & how, const std::string & marker,
        const std::string & text, const std::vector<image> & images, bool add_bos, int64_t n_ctx, const text_spans & spans = {});

// Of text alone. add_special: those that the vocabulary puts around a text; parse_special: the spelling of a special token is that
// token. Throws as tokenize() does; n_ctx: of a text that is far longer nothing is tokenized.
std::vector<llama_token> tokens_of(const llama_model * model, const std::string & text, bool add_special, bool parse_special,
        int64_t n_ctx);

// error(option): a number that is no token
void check_tokens(const llama_vocab * vocab, const std::vector<llama_token> & tokens);

// Of tokens as they are. Throws error(option), error(context_length).
prompt prompt_of(const llama_vocab * vocab, const std::vector<llama_token> & tokens, int64_t n_ctx);

} // namespace pyfastv
