#pragma once

#include "runner/encoder_cache.h"
#include "runner/errors.h"
#include "runner/options.h"
#include "runner/prompt.h"
#include "runner/reduction.h"
#include "runner/request_schedule.h"

#include "llama-cpp.h"
#include "pyfastv.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace pyfastv {

struct token_prob {
    llama_token token;
    std::string bytes;
    float       logprob; // natural log of the softmax of the model's logits, before any sampler
};

// How the tokens of an answer are picked.
struct slot_sampling {
    llama_sampler_ptr sampler;
    int32_t           n_excluding = 0; // samplers at the beginning that may leave no token: a grammar, biases
    int32_t           max_tokens  = -1;
    int32_t           n_probs     = 0;
    bool              is_lazy     = false; // the first of them waits for what triggers it

    std::vector<llama_token> preserved; // control tokens that are text of the answer
    bool              special     = false; // names of control tokens are text of the answer
};

struct slot_request {
    prompt           wanted;
    request_schedule schedule;
    slot_sampling    sampling;
    bool             cache_prompt = true; // false: what slots hold of its prompt is computed again
    bool             opened = false; // computed while a thread waits for it; once its prompt is read, it is told how to go on
};

// What a step did to one request: a token, an end, or both.
struct slot_event {
    int64_t id     = 0;
    bool    opened = false; // the request was; its thread asks for what else there is to know

    llama_token             token = LLAMA_TOKEN_NULL; // none: only an end
    std::string             bytes;
    float                   logprob = 0; // if probabilities were asked for
    std::vector<token_prob> top;         // the likeliest, most likely first

    bool                 ready  = false;   // the prompt of an opened request is read
    const char *         finish = nullptr; // "stop", "length", "cancelled"; the request has ended
    std::optional<error> failure;          // or in this way
    run_report           report;           // of a request that has ended

    std::vector<std::vector<int32_t>> kept; // [cut] visual tokens behind it, of a request that has ended
    std::vector<pyfastv_grid>         grids;

    struct seen_slice {
        std::vector<patch_grid> patches;
        std::vector<int32_t>    places; // [visual token] the patch whose position it has
    };
    std::vector<std::vector<seen_slice>> pictures; // [picture][slice] of a request that has ended

    bool ended() const { return finish || failure; }
};

// A sequence of the context, and the request that has it.
struct slot {
    enum class state { idle, starting, ready, generating };

    explicit slot(llama_seq_id seq_id) : seq_id(seq_id) {}

    const llama_seq_id seq_id;

    // What the sequence holds, also when no request has it.

    struct asked {
        llama_pos end;      // behind the question
        int64_t   n_visual; // tokens before it
    };

    request_schedule          schedule; // by which it was chosen
    std::vector<prompt_piece> evaluated;
    std::vector<asked>        questions; // after which visual tokens were chosen
    llama_pos                 n_past    = 0;
    int64_t                   n_tokens  = 0; // of evaluated
    int64_t                   last_used = 0; // counts requests

    // The request.

    state   now = state::idle;
    int64_t id  = 0;

    slot_request       request; // `evaluated` is the beginning of its prompt while starting
    encoded_slice      picture; // encoder output of the picture that is next; empty: not encoded
    picture_reduction  reduced; // or what is made of it
    size_t             n_rows  = 0; // of the piece that is next, in the sequence already
    std::vector<size_t> marks;      // in pieces of its prompt, ascending: where others may part from it, so that batches end there
    llama_token        sampled = LLAMA_TOKEN_NULL; // not evaluated yet
    bool               waits   = false;            // for cells
    bool               shares_no_batch = false;    // one failed, and whose fault that was is found alone

    // What it was asked is read, and waits for the later layers, which run in pieces.
    struct in_pieces {
        size_t               begin; // of `evaluated`, in pieces: from there on it is read again if that fails
        bool                 reads; // the logits of its last row
        std::vector<int32_t> entered_before; // if it may recall
    };
    std::optional<in_pieces> flushing;

    std::vector<float> logits;                     // F32 [n_vocab] while ready, of the last row

    // also when it has ended
    run_report              counts;
    std::vector<slot_event> untold;           // of an opened request
    const char *            finish = nullptr;

    int64_t    t_start_us      = 0;
    int64_t    t_computed_us   = 0; // when something was computed for it last
    int32_t    n_reused_before = 0; // graphs

    bool idle() const { return now == state::idle; }

    bool holds_pictures() const {
        return std::any_of(evaluated.begin(), evaluated.end(), [](const prompt_piece & piece) { return piece.visual(); });
    }

    void forget_picture() {
        picture = {};
        reduced = {};
        n_rows  = 0;
    }

    // of its prompt, tokens; half of those of a picture whose slices are on their way to a reducer
    int64_t n_done() const {
        const bool on_its_way = reduced.n_added() > 0 && !reduced.done();
        return n_tokens + (int64_t) n_rows + (on_its_way ? (int64_t) (reduced.n_tokens()*reduced.n_added()/reduced.n_slices()/2) : 0);
    }

    // of its prompt, while starting
    const prompt_piece & next_piece() const { return request.wanted.pieces[evaluated.size()]; }

    // or the end of its prompt
    size_t next_mark() const {
        const auto next = std::upper_bound(marks.begin(), marks.end(), evaluated.size());
        return next == marks.end() ? request.wanted.pieces.size() : *next;
    }
};

} // namespace pyfastv
