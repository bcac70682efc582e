#pragma once

#include "choose/ledger.h"

#include "llama.h"

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

// What a context with stages remembers of one sequence, beside its KV cells: its visual tokens, the rows that wait, and
// what every choice was made from.
namespace pyfastv {

struct similarity_matrix;

// A position as in llama_ubatch: for M-RoPE t, y, x and one more; for others the first alone, the rest zero.
// It tells the tokens of a sequence apart, and so finds their KV cells.
using position = std::array<llama_pos, 4>;

// of any context: what is read from outside is held to it
constexpr bool is_possible(llama_pos pos) { return 0 <= pos && pos < 1 << 30; }

// Numbers of a token between two stages.
struct row_width {
    int64_t n_embd;          // of the stream
    int64_t n_per_layer = 0; // of all that layers have of a token beside it (Gemma 4's per-layer embeddings); 0: nothing
};

// F32 [n_embd] at the end of a stage, or [n_per_layer]. Each has memory of its own, so that what is dropped frees it.
using hidden_row = std::shared_ptr<const float>;

// fill(float * to) writes its n numbers; archive: who counts them
template <typename F>
hidden_row new_hidden_row(int64_t n, const ledger_ptr & archive, F && fill) {
    const auto block = std::make_shared<counted_floats>(n, 0.0f, archive);
    fill(block->data());
    return hidden_row(block, block->data());
}

// One row that has been through stage 0.
struct staged_row {
    static constexpr int32_t no_ubatch = -1;

    position   pos;
    int32_t    ubatch; // number of the ubatch that brought it; no_ubatch: it was recalled
    int32_t    output; // index in its llama_decode() batch if its logits were asked for; else -1
    int32_t    token;  // index in sequence::tokens; text: -1
    bool       causal; // decoded with causal attention
    bool       audio;  // has no part in a question, so no vote where only a question's rows have one
    bool       asks;   // part of a question: rows of text of which not all are read. Generated tokens are read, the draft of several, too
    hidden_row hidden;
    hidden_row per_layer; // the same in every stage; null: row_width::n_per_layer is 0

    counted_floats scores; // attention paid to sequence::tokens, as many as there were; empty: not read

    bool visual()   const { return token >= 0; }
    bool recalled() const { return ubatch == no_ubatch; }
};

struct visual_token {
    position   pos;
    int32_t    entered; // number of stages that it is in, at least 1
    bool       gone;    // removed from the sequence; its place in the picture stays

    std::vector<hidden_row> hidden; // [cut] at the end of each stage that it is in, as it left it
    std::vector<float>      size;   // [cut] that it passed: how many tokens it stands for in the stage behind
    int32_t                 owner;  // who stands for it behind the cut that it did not pass: index in sequence::tokens; -1: nobody
    hidden_row              per_layer; // as in staged_row

    // how many tokens it stands for in a stage
    float size_in(int32_t stage) const { return stage == 0 ? 1.0f : size[stage - 1]; }
};

struct picture {
    struct slice {
        int32_t n;      // tokens
        int32_t nx, ny; // what they cover, in tokens or in proportion; 0: not known
    };

    std::string        id;
    int32_t            first; // in sequence::tokens
    std::vector<slice> slices;

    std::vector<std::shared_ptr<const similarity_matrix>> similarity; // [cut] of its tokens, as last used; null: not computed

    int32_t n_tokens() const;
};

// What one flush did: enough to take it back.
struct turn {
    struct recall {
        int32_t      token; // in sequence::tokens
        visual_token before;
    };

    std::vector<staged_row> rows; // that waited
    std::vector<recall>     recalled;
};

struct sequence {
    std::vector<visual_token> tokens;   // of all pictures, in prompt order
    std::vector<picture>      pictures;
    std::vector<staged_row>   pending;  // rows that wait at the first cut, in prompt order
    std::vector<turn>         turns;

    std::vector<std::vector<float>> scores; // [cut][token] of the last choice

    bool empty() const { return tokens.empty() && pending.empty() && turns.empty(); }

    // a visual token is at a cut that it did not pass
    bool has_dropped(int32_t n_stages) const;

    bool last_picture_waits() const;

    // index in pictures
    size_t picture_of(int32_t token) const;

    // Appends visual tokens: to the last picture if it `continues`, as a new slice or as more of the last.
    enum class extent { picture, slice, more };
    int32_t add_tokens(const std::vector<position> & pos, extent as, const std::string & id, int32_t nx, int32_t ny);

    // Removes positions [p0, inf). A turn that loses rows is taken back: what is left of it waits again, and what it
    // recalled is dropped again.
    struct undone {
        llama_pos                 from = INT32_MAX; // the later stages must forget everything from here on
        std::vector<turn::recall> recalled;         // and these tokens: from their stage `before.entered` on
    };
    undone truncate(llama_pos p0);

    // The first position, beyond 0, that truncate() may be called with if rows of the later stages need their place to be
    // `later` or behind it. forgets: the later stages can do without the tokens that a turn recalled.
    llama_pos removable_from(llama_pos later, bool forgets) const;

    // Turns with rows before `later` can no longer be taken back: their choice stays.
    void settle(llama_pos later);

    // Removes positions [p0, p1) from the middle. Pictures of which nothing is left are forgotten.
    void erase(llama_pos p0, llama_pos p1);

    void shift (llama_pos p0, llama_pos p1, llama_pos delta);
    void divide(llama_pos p0, llama_pos p1, int d);

    // Takes over all of another sequence, behind its own.
    void append(sequence other);

private:
    void remove(llama_pos p0, llama_pos p1); // a picture's tokens keep their places

    // The tokens of pictures of which nothing is left: others are numbered anew.
    void forget_gone();

    template <typename F> void for_each_position(F && f);
};

} // namespace pyfastv
