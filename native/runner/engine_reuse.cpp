// engine: what they hold, and what a new request finds of its prompt

#include "runner/engine.h"

#include "runner/errors.h"

#include "ggml.h"

#include <algorithm>
#include <set>
#include <utility>

namespace pyfastv {
namespace {

constexpr int64_t patience_us = 1'000'000; // with a thread that is between two tokens

constexpr size_t worth_a_checkpoint = 64; // tokens of text that would be computed again

// keys and values stay in the context
constexpr llama_state_seq_flags states_alone = LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY;

// of the first n pieces
int64_t tokens_of(const std::vector<prompt_piece> & pieces, size_t n) {
    int64_t res = 0;
    for (size_t i = 0; i < n; ++i) {
        res += pieces[i].n_tokens;
    }
    return res;
}

llama_pos end_of(const std::vector<prompt_piece> & pieces, size_t n) {
    llama_pos res = 0;
    for (size_t i = 0; i < n; ++i) {
        res += pieces[i].n_pos;
    }
    return res;
}

// a question that loses tokens has chosen nothing
void drop_questions(slot & s) {
    while (!s.questions.empty() && s.questions.back().end > s.n_past) {
        s.questions.pop_back();
    }
}

} // namespace

size_t engine::n_common(const slot & s, const slot_request & request) const {
    const auto & wanted = request.wanted;

    if (!request.cache_prompt) {
        return 0;
    }

    // of a picture other tokens stay; text comes to the same
    const bool chosen_alike = s.schedule.text == request.schedule.text;

    size_t n = 0;
    // the last piece is evaluated again: somebody will read its logits
    while (n < s.evaluated.size() && n + 1 < wanted.pieces.size() && wanted.pieces[n].same_as(s.evaluated[n]) &&
            (chosen_alike || !s.evaluated[n].visual()) && question_follows(s.evaluated[n], wanted, n)) {
        n++;
    }
    // a question that has chosen nothing, as it was longer, is read again
    const bool asks = request.schedule.n_cuts() > 0 && n > 0 && !wanted.pieces[n - 1].visual() && wanted.asked_before(n);
    const auto end  = asks ? end_of(s.evaluated, n) : 0;
    if (asks && std::none_of(s.questions.begin(), s.questions.end(), [end](const auto & question) { return question.end == end; })) {
        n--;
    }
    return n;
}

bool engine::forgot(const slot & s, size_t n) const {
    const int32_t n_swa = llama_model_n_swa(model.get());

    return n_swa > 0 && n > 0 && n < s.evaluated.size() &&
            llama_memory_seq_pos_min(llama_get_memory(ctx.get()), s.seq_id) > std::max(0, end_of(s.evaluated, n) - n_swa);
}

size_t engine::in_reach(const slot & s, size_t n) const {
    if (n == s.evaluated.size()) {
        return n;
    }
    // a state that is no list of tokens has no beginning
    if (recurrent) {
        return checkpoints.reach(s.seq_id, n);
    }
    return forgot(s, n) ? 0 : n;
}

size_t engine::copyable(const slot & from, size_t n) const {
    // a copy would take back what is computed in pieces
    if (from.flushing) {
        return 0;
    }
    if (recurrent) {
        return checkpoints.reach(from.seq_id, n);
    }
    return forgot(from, n) ? 0 : n;
}

void engine::clear(slot & s) {
    llama_memory_seq_rm(llama_get_memory(ctx.get()), s.seq_id, -1, -1);
    checkpoints.forget_behind(s.seq_id, 0);
    s.evaluated.clear();
    s.questions.clear();
    s.flushing = {};
    s.n_rows   = 0;
    s.n_past   = 0;
    s.n_tokens = 0;

    // a copy brought one with it, which is gone
    set_schedule(s, s.schedule);
}

void engine::keep(slot & s, size_t n) {
    if (n > 0 && !forgot(s, n) && llama_memory_seq_rm(llama_get_memory(ctx.get()), s.seq_id, end_of(s.evaluated, n), -1)) {
        hold(s, n);
        return;
    }
    if (!go_back(s, n)) {
        clear(s);
    }
    s.forget_picture(); // another may be next now
}

void engine::hold(slot & s, size_t n) {
    s.evaluated.resize(n);
    s.n_rows   = 0;
    s.n_past   = end_of(s.evaluated, n);
    s.n_tokens = tokens_of(s.evaluated, n);
    s.counts.cached_tokens = std::min(s.counts.cached_tokens, s.n_tokens);
    drop_questions(s);
    checkpoints.forget_behind(s.seq_id, n);
}

void engine::copy(const slot & from, slot & to, size_t n) {
    clear(to);

    // a state is copied as a whole, and goes back
    const size_t n_copied = recurrent ? from.evaluated.size() : n;
    to.n_past = end_of(from.evaluated, n_copied);
    llama_memory_seq_cp(llama_get_memory(ctx.get()), from.seq_id, to.seq_id, recurrent ? -1 : 0, recurrent ? -1 : to.n_past);

    to.schedule = from.schedule;
    to.evaluated.assign(from.evaluated.begin(), from.evaluated.begin() + n_copied);
    to.n_tokens  = tokens_of(to.evaluated, n_copied);
    to.questions = from.questions;
    drop_questions(to);

    if (recurrent) {
        checkpoints.share(from.seq_id, to.seq_id, n);
        if (!go_back(to, n)) {
            clear(to);
        }
    }
}

//
// recurrent layers
//

std::vector<size_t> engine::marks_of(const slot_request & request) const {
    if (!recurrent || options.checkpoint_bytes == 0) {
        return {};
    }
    const auto & wanted = request.wanted;

    // behind the last picture, and in front of the last question
    std::set<size_t> res = { wanted.end_of_pictures(), wanted.answers.empty() ? 0 : wanted.answers.back().end };

    // Where it parts from what a slot holds, another may. Behind a picture a question is known by its batch, which is not cut.
    size_t known   = 0;
    size_t reached = 0;
    for (const auto & s : all) {
        const size_t n = n_common(s, request);
        known   = std::max(known, n);
        reached = std::max(reached, in_reach(s, n));
    }
    const auto   visual = std::find_if(wanted.pieces.begin(), wanted.pieces.end(), [](const auto & piece) { return piece.visual(); });
    const size_t text   = std::min<size_t>(known, visual - wanted.pieces.begin());
    if (text >= reached + worth_a_checkpoint) {
        res.insert(text);
    }
    res.erase(0);

    return { res.begin(), res.end() };
}

void engine::remember(slot & s) {
    const size_t n = s.evaluated.size();

    const bool at_mark = s.now == slot::state::starting && std::binary_search(s.marks.begin(), s.marks.end(), n);
    if (!at_mark || s.flushing || checkpoints.reach(s.seq_id, n) == n) {
        return;
    }
    // where there is no memory for it a later prompt is computed anew
    error_of([&] {
        const size_t size = llama_state_seq_get_size_ext(ctx.get(), s.seq_id, states_alone);
        if (size == 0 || !checkpoints.make_room(size)) {
            return;
        }
        std::vector<uint8_t> state(size);
        if (llama_state_seq_get_data_ext(ctx.get(), state.data(), size, s.seq_id, states_alone) == size) {
            checkpoints.put(s.seq_id, n, std::move(state));
        }
    });
}

bool engine::go_back(slot & s, size_t n) {
    const auto * last = checkpoints.find(s.seq_id, n);
    if (!last) {
        return false;
    }
    const auto   state    = last->state;
    const size_t n_pieces = last->n_pieces;

    if (llama_state_seq_set_data_ext(ctx.get(), state->data(), state->size(), s.seq_id, states_alone) != state->size() ||
            !llama_memory_seq_rm(llama_get_memory(ctx.get()), s.seq_id, end_of(s.evaluated, n_pieces), -1)) {
        return false;
    }
    hold(s, n_pieces);

    // text of a slot may have been computed by another schedule, which came back with it
    if (!s.holds_pictures()) {
        set_schedule(s, s.schedule);
    }
    return true;
}

void engine::advance(slot & s, const std::vector<prompt_piece> & pieces, llama_pos n_past) {
    for (const auto & piece : pieces) {
        s.evaluated.push_back(piece);
        s.evaluated.back().chunk = nullptr;
        s.n_tokens += piece.n_tokens;
    }
    s.n_past = n_past;
}

slot & engine::place(const slot_request & request) {
    struct found {
        slot *  s      = nullptr;
        size_t  n      = 0; // pieces
        int64_t tokens = 0;
    };
    found best;      // of all slots
    found best_idle; // of those that can be had
    slot * oldest = nullptr; // idle, empty ones first

    const auto older = [](const slot & a, const slot & b) {
        return std::make_pair(a.n_tokens > 0, a.last_used) < std::make_pair(b.n_tokens > 0, b.last_used);
    };
    const auto take_longer = [&](found & to, const found & other) {
        if (!to.s || other.tokens > to.tokens || (other.tokens == to.tokens && older(*other.s, *to.s))) {
            to = other;
        }
    };

    for (auto & s : all) {
        const size_t known = n_common(s, request);
        const size_t n     = s.idle() ? in_reach(s, known) : copyable(s, known);
        const found  here  = { &s, n, tokens_of(s.evaluated, n) };

        if (s.idle()) {
            take_longer(best_idle, here);
            oldest = !oldest || older(s, *oldest) ? &s : oldest;
        }
        take_longer(best, here);
    }

    if (best.tokens == 0) {
        clear(*oldest);
        return *oldest;
    }

    // In place, what is behind the beginning is lost; by a copy, what the oldest slot holds. A few words that all prompts
    // begin with are no reason to lose a slot that was used lately.
    const int64_t lost = best.s->n_tokens - best.tokens;
    if (best.s->idle() && (best.s == oldest || (lost <= best.tokens && lost <= oldest->n_tokens))) {
        keep(*best.s, best.n);
        return *best.s;
    }
    if (copyable(*best.s, best.n) == best.n) {
        copy(*best.s, *oldest, best.n);
        return *oldest;
    }
    keep(*best_idle.s, best_idle.n);
    return *best_idle.s;
}

bool engine::take_over(slot & s) {
    const slot * best = nullptr;
    size_t       n    = s.evaluated.size();

    for (const auto & other : all) {
        if (const size_t n_here = copyable(other, n_common(other, s.request)); &other != &s && n_here > n) {
            best = &other;
            n    = n_here;
        }
    }
    if (!best) {
        return false;
    }

    const int64_t n_before = s.n_tokens;
    copy(*best, s, n);
    choose_by(s, s.request.schedule);
    s.counts.cached_tokens = std::max<int64_t>(0, s.counts.cached_tokens + s.n_tokens - n_before);
    s.forget_picture();

    return true;
}

bool engine::evict() {
    slot * oldest  = nullptr; // of the idle ones
    slot * waiting = nullptr; // the youngest of those that wait for cells themselves: it begins again
    slot * left    = nullptr; // the oldest opened one that nobody has waited for lately: it ends

    for (auto & s : all) {
        if (s.n_tokens == 0) {
            continue;
        }
        if (s.idle() && (!oldest || s.last_used < oldest->last_used)) {
            oldest = &s;
        }
        if (s.waits && (!waiting || s.id > waiting->id)) {
            waiting = &s;
        }
        const bool is_left = s.request.opened && computed.count(s.id) == 0 && ggml_time_us() - s.t_computed_us > patience_us;
        if (is_left && (!left || s.id < left->id)) {
            left = &s;
        }
    }
    if (slot * s = oldest ? oldest : waiting ? waiting : left) {
        if (s == left) {
            auto nobody = event_of(*s);
            end(*s, nobody);
        }
        clear(*s);
        s->forget_picture();
        s->counts.cached_tokens = 0;
        return true;
    }
    return false;
}

} // namespace pyfastv
