// engine: what a step computes

#include "runner/engine.h"

#include "runner/damage.h"
#include "runner/errors.h"
#include "runner/log.h"
#include "runner/stage_times.h"
#include "runner/status.h"
#include "runner/stopwatch.h"

#include "ggml.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <utility>

namespace pyfastv {
namespace {

bool has_nan(const float * values, size_t n) {
    bool res = false;
    for (size_t i = 0; i < n; ++i) {
        res |= values[i] != values[i];
    }
    return res;
}

error later_layers_failed(pyfastv_status status) {
    return error(kind_of(status), std::string("the later layers failed: ") + pyfastv_last_error());
}

int64_t n_visual(const std::vector<prompt_piece> & pieces) {
    int64_t res = 0;
    for (const auto & piece : pieces) {
        res += piece.visual() ? piece.n_tokens : 0;
    }
    return res;
}

} // namespace

bool engine::is_cancelled(const slot & s) {
    const std::lock_guard<std::mutex> lock(mutex);
    return cancelled.count(s.id) > 0;
}

std::vector<slot *> engine::in(slot::state state) {
    std::vector<slot *> res;
    for (auto & s : all) {
        if (s.now == state && (s.request.opened ? computed.count(s.id) > 0 : for_started)) {
            res.push_back(&s);
        }
    }
    std::sort(res.begin(), res.end(), [](const slot * a, const slot * b) { return a->id < b->id; });

    return res;
}

//
// text
//

void engine::generate(events & out) {
    std::vector<part> parts;
    for (slot * s : in(slot::state::generating)) {
        if (has_all(*s)) {
            finish(*s, event_of(*s), "length", out);
            continue;
        }
        prompt_piece piece;
        piece.token = s->sampled;
        parts.push_back({ s, { piece }, true });
    }
    if (!parts.empty()) {
        run(parts, out);
    }
}

void engine::prefill(events & out) {
    // in turn, so that none of a kind keeps others waiting
    static constexpr std::array kinds = { &engine::prefill_picture, &engine::prefill_later, &engine::prefill_text };

    for (size_t i = 1; i <= kinds.size(); ++i) {
        const size_t kind = (last_kind + i) % kinds.size();
        if ((this->*kinds[kind])(out)) {
            last_kind = kind;
            return;
        }
    }
}

int64_t engine::n_waiting(const slot & s) const {
    const llama_pos begin = s.questions.empty() ? 0 : s.questions.back().end;

    int64_t   n      = 0;
    llama_pos at     = s.n_past;
    bool      visual = false;
    for (auto piece = s.evaluated.rbegin(); at > begin && piece != s.evaluated.rend(); ++piece) {
        n      += piece->n_tokens;
        at     -= piece->n_pos;
        visual |= piece->visual();
    }
    return visual && attached_to(ctx.get()) ? n : 0;
}

bool engine::prefill_text(events & out) {
    std::vector<part> parts;
    size_t            room       = llama_n_ubatch(ctx.get());
    int64_t           room_later = room; // rows of the later layers

    const bool flies = std::any_of(all.begin(), all.end(), [](const slot & s) { return s.flushing.has_value(); });

    for (slot * s : in(slot::state::starting)) {
        if (s->flushing) {
            continue;
        }
        const auto & wanted = s->request.wanted;
        const auto & pieces = wanted.pieces;
        const size_t begin  = s->evaluated.size();

        // where nothing is chosen, turns make no difference
        const size_t limit = std::min(s->schedule.n_cuts() > 0 ? wanted.end_of_turn(begin) : pieces.size(), s->next_mark());

        size_t end = begin;
        while (!s->waits && end < limit && end - begin < room && !pieces[end].visual()) {
            end++;
        }
        // a question is known by a row in its batch that is not read
        const bool cut_short = end - begin == 1 && end < limit && !pieces[end].visual();
        if (end == begin || (cut_short && !parts.empty())) {
            continue;
        }
        const bool answers = s->schedule.n_cuts() > 0 && wanted.in_answer(begin);
        if (!parts.empty() && (parts[0].answers != answers || parts[0].s->shares_no_batch || s->shares_no_batch)) {
            continue;
        }
        const bool reads = end == pieces.size() || (s->schedule.n_cuts() > 0 && end == limit && wanted.asked_before(end));

        // more than a batch of them comes in pieces, of one slot at a time
        const int64_t n_later = reads ? n_waiting(*s) + (int64_t) (end - begin) : 0;
        if (n_later > room_later && (!parts.empty() || flies)) {
            continue;
        }
        room_later = std::max<int64_t>(0, room_later - n_later);

        parts.push_back({ s, { pieces.begin() + begin, pieces.begin() + end }, reads, answers });
        room -= end - begin;
    }
    if (!parts.empty()) {
        run(parts, out);
    }
    return !parts.empty();
}

void engine::run(const std::vector<part> & parts, events & out) {
    const log_scope log(options.verbose);
    const stopwatch watch;

    const bool alone     = parts.size() == 1;
    const bool of_prompt = parts[0].s->now == slot::state::starting; // then all are

    std::optional<stage_times>        times;
    std::vector<std::vector<int32_t>> entered_before;

    int32_t                    result = 0;
    std::vector<const float *> logits; // of every part; empty: they could not be computed
    bool                       more   = false; // pieces to run

    std::optional<error> not_flushed;

    const auto compute = [&] {
        result = decode(parts);
        // reading would do it, but at once, and says not why it could not
        auto status = PYFASTV_OK;
        for (bool first = true; result == 0 && alone && parts[0].reads && (first || (more && !of_prompt)); first = false) {
            status = pyfastv_flush_piece(ctx.get(), parts[0].s->seq_id, &more);
        }
        if (status != PYFASTV_OK) {
            not_flushed = later_layers_failed(status);
        }
        if (result == 0 && !not_flushed && !more) {
            logits = read_logits(parts);
        }
    };
    const auto thrown = error_of([&] {
        if (of_prompt) {
            times.emplace(ctx.get());
        }
        for (const auto & part : parts) {
            const bool recalls = of_prompt && part.reads && !part.s->questions.empty();
            entered_before.push_back(recalls ? entered(*part.s) : std::vector<int32_t> {});
        }
        if (alone) {
            working(*parts[0].s, compute);
        } else {
            compute();
        }
        if (times) {
            times->stop();
        }
    });

    if (thrown || (logits.empty() && !more)) {
        std::vector<part> again;
        for (const auto & part : parts) {
            const size_t n = part.s->evaluated.size();
            keep(*part.s, n);

            // recurrent layers may go back further, from where a prompt is read again
            if (part.s->evaluated.size() == n) {
                again.push_back(part);
            } else if (of_prompt) {
                part.s->shares_no_batch |= !was_stopped;
            } else if (was_stopped || !alone) {
                clear(*part.s);
                fail(*part.s, error(error_kind::decode, "a token was stopped half-way, and recurrent layers do not go back: ask again"), out);
            }
        }
        if (was_stopped) {
            return; // by who computes, not by who asked
        }
        if (!alone) {
            for (const auto & part : again) {
                run({ part }, out);
            }
            return;
        }
        auto & s = *parts[0].s;
        if (is_cancelled(s)) {
            return; // ends with this step
        }
        if (!thrown && result == 1) {
            no_room(s, out);
            return;
        }
        auto reason = thrown ? thrown : not_flushed;
        const float * computed_last = !reason && result == 0 && log.reason("").empty() ? llama_get_logits_ith(ctx.get(), -1) : nullptr;
        if (computed_last) {
            reason = error_of([&] { check_numbers(computed_last, n_vocab(), "the language model", options); });
        }
        if (!reason) {
            reason = log.failure(error_kind::decode, "the model could not be evaluated",
                    result == 0 ? "the later layers failed" : "llama_decode returned " + std::to_string(result));
        }
        clear(s);
        fail(s, *reason, out);
        return;
    }
    decoded_last = alone && parts[0].reads && !more ? parts[0].s : nullptr;

    size_t n_rows = 0;
    for (const auto & part : parts) {
        n_rows += part.pieces.size();
    }
    const double ms = watch.ms();

    const auto take = [&](size_t i) {
        auto & s = *parts[i].s;

        advance(s, parts[i].pieces, s.n_past + (llama_pos) parts[i].pieces.size());
        s.t_computed_us = ggml_time_us();

        if (!of_prompt) {
            s.counts.generate_ms += ms;
        } else {
            times->add_to(s.counts, (double) parts[i].pieces.size()/n_rows);
        }
        if (more) {
            s.flushing = { s.evaluated.size() - parts[i].pieces.size(), true, std::move(entered_before[i]) };
        } else if (of_prompt && parts[i].reads) {
            asked(s, entered_before[i], logits[i], out);
        } else if (parts[i].reads) {
            s.logits.clear();
            answer(s, logits[i], out);
        }
        remember(s);
    };
    for (size_t i = 0; i < parts.size(); ++i) {
        if (const auto failure = error_of([&] { take(i); })) {
            clear(*parts[i].s);
            fail(*parts[i].s, *failure, out);
        }
    }
}

void engine::asked(slot & s, const std::vector<int32_t> & entered_before, const float * logits, events & out) {
    if (logits) {
        if (!s.questions.empty()) {
            const auto now    = entered(s);
            auto       before = entered_before;
            before.resize(now.size(), 0);
            s.counts.recalled_tokens = 0; // by the last question
            for (size_t t = 0; t < now.size() && (int64_t) t < s.questions.back().n_visual; ++t) {
                s.counts.recalled_tokens += now[t] > before[t];
            }
        }
        s.questions.push_back({ s.n_past, n_visual(s.evaluated) });
        check_numbers(logits, n_vocab(), "the language model", options);
    }
    s.logits.clear();
    if (s.evaluated.size() == s.request.wanted.pieces.size()) {
        answer(s, logits, out);
    }
}

bool engine::prefill_later(events & out) {
    const auto starting = in(slot::state::starting);

    const auto it = std::find_if(starting.begin(), starting.end(), [](const slot * s) { return s->flushing.has_value(); });
    if (it == starting.end()) {
        return false;
    }
    auto & s = **it;

    const log_scope log(options.verbose);

    auto          status = PYFASTV_OK;
    bool          more   = false;
    const float * logits = nullptr;

    auto failure = error_of([&] {
        stage_times times(ctx.get());
        working(s, [&] { status = pyfastv_flush_piece(ctx.get(), s.seq_id, &more); });
        times.stop();
        times.add_to(s.counts, 1);
        logits = status == PYFASTV_OK && !more && s.flushing->reads ? llama_get_logits_ith(ctx.get(), -1) : nullptr;
    });
    s.t_computed_us = ggml_time_us();

    if (!failure && status == PYFASTV_OK && more) {
        return true;
    }
    const auto flushed = *std::exchange(s.flushing, {});

    if (!failure && status == PYFASTV_OK && (logits || !flushed.reads)) {
        decoded_last = logits ? &s : nullptr;
        failure = error_of([&] { asked(s, flushed.entered_before, logits, out); });
        if (failure) {
            clear(s);
            fail(s, *failure, out);
        }
        return true;
    }
    // what else happened to the sequence may have taken it back; then it is read again
    keep(s, flushed.begin);
    if (was_stopped || is_cancelled(s) || (!failure && status == PYFASTV_OK)) {
        return true;
    }
    clear(s);
    fail(s, failure ? *failure : later_layers_failed(status), out);
    return true;
}

int32_t engine::decode(const std::vector<part> & parts) {
    std::vector<llama_token>    tokens;
    std::vector<llama_pos>      pos;
    std::vector<llama_seq_id>   seq_ids;
    std::vector<llama_seq_id *> seq_id;
    std::vector<int8_t>         outputs;

    for (const auto & part : parts) {
        for (size_t i = 0; i < part.pieces.size(); ++i) {
            tokens.push_back(part.pieces[i].token);
            pos.push_back(part.s->n_past + (llama_pos) i);
            seq_ids.push_back(part.s->seq_id);
            outputs.push_back(part.reads && i + 1 == part.pieces.size());
        }
    }
    for (auto & id : seq_ids) {
        seq_id.push_back(&id);
    }
    std::vector<int32_t> n_seq_id(tokens.size(), 1);

    decoded_last = nullptr;

    llama_batch batch = {};
    batch.n_tokens = tokens.size();
    batch.token    = tokens.data();
    batch.pos      = pos.data();
    batch.n_seq_id = n_seq_id.data();
    batch.seq_id   = seq_id.data();
    batch.logits   = outputs.data();

    pyfastv_set_answering(ctx.get(), parts[0].answers);

    int32_t result;
    do {
        result = llama_decode(ctx.get(), batch);
    } while (result == 1 && evict());
    llama_synchronize(ctx.get());

    return result;
}

std::vector<const float *> engine::read_logits(const std::vector<part> & parts) {
    std::vector<const float *> res;

    int32_t row = -1;
    for (const auto & part : parts) {
        row += part.pieces.size();
        res.push_back(part.reads ? llama_get_logits_ith(ctx.get(), row) : nullptr);

        // the later layers run when the first is read; if they fail, all are NaN
        if (part.reads && (!res.back() || has_nan(res.back(), n_vocab()))) {
            return {};
        }
    }
    return res;
}

void engine::no_room(slot & s, events & out) {
    if (s.now == slot::state::generating) {
        finish(s, event_of(s), "length", out);
        return;
    }
    if (s.now == slot::state::ready) {
        error err(error_kind::context_length, "the context of " + std::to_string(n_ctx_slot) + " tokens is full");
        err.n_tokens = s.n_tokens;
        err.n_ctx    = n_ctx_slot;
        fail(s, err, out);
        return;
    }
    const bool others_end = std::any_of(all.begin(), all.end(), [&](const slot & other) {
        return &other != &s && !other.idle() && !other.waits;
    });
    if (others_end) {
        s.waits = true;
        return;
    }
    error err(error_kind::context_length, "the prompt has " + std::to_string(s.request.wanted.n_tokens) + " tokens, for which the context has no room "
            "(n_ctx is " + std::to_string(n_ctx_slot) + " for each request; the later layers may have fewer cells): use a larger n_ctx");
    err.n_tokens = s.request.wanted.n_tokens;
    err.n_ctx    = n_ctx_slot;
    fail(s, err, out);
}

} // namespace pyfastv
