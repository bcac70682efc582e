// engine: requests that threads wait for, each for its own

#include "runner/engine.h"

#include "guard/workers.h"
#include "runner/errors.h"
#include "runner/log.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <utility>

namespace pyfastv {
namespace {

using namespace std::chrono_literals;

constexpr auto poll_interval = 10ms;
constexpr auto patience      = 1ms; // with a thread that is between two tokens

class unlocked {
public:
    explicit unlocked(std::unique_lock<std::mutex> & lock) : lock(lock) { lock.unlock(); }
    ~unlocked() { lock.lock(); }
    unlocked(const unlocked &) = delete;

private:
    std::unique_lock<std::mutex> & lock;
};

error ended_by_a_later_one() {
    return error(error_kind::closed, "this request was ended by a later one");
}

} // namespace

slot & engine::at(int64_t id) {
    return const_cast<slot &>(std::as_const(*this).at(id));
}

const slot & engine::at(int64_t id) const {
    const auto it = std::find_if(all.begin(), all.end(), [id](const slot & s) { return s.id == id; });
    if (it == all.end()) {
        throw ended_by_a_later_one();
    }
    return *it;
}

//
// waiting
//

slot_event engine::wait(int64_t id, const progress_fn & progress) {
    std::unique_lock<std::mutex> lock(turns);

    struct waiter {
        std::set<int64_t> & of;
        const int64_t       id;

        ~waiter() { of.erase(id); } // the lock is held, whatever is thrown
    };
    waited_for.insert(id);
    const waiter waits = { waited_for, id };
    turn_ended.notify_all();

    const auto wait_a_while = [&] {
        turn_ended.wait_for(lock, poll_interval);
        const unlocked others_go_on(lock);
        if (options.interrupt && options.interrupt()) {
            throw interrupted();
        }
    };

    int64_t told = -1;
    while (true) {
        if (taken) {
            wait_a_while();
            continue;
        }
        auto & s = at(id);

        // for cells, which others may have left meanwhile
        if (s.waits) {
            wait_a_while();
            s.waits = s.waits && taken;
            continue;
        }

        if (progress && s.n_done() > told) {
            const bool    first = std::exchange(told, s.n_done()) < 0;
            const int64_t all   = s.counts.prompt_tokens;
            if (!first) {
                const unlocked others_go_on(lock);
                progress(told, all);
            }
            continue;
        }
        if (!s.untold.empty()) {
            auto event = std::move(s.untold.front());
            s.untold.erase(s.untold.begin());
            return event;
        }
        if (s.idle()) {
            if (!s.finish) {
                throw ended_by_a_later_one();
            }
            slot_event event;
            event.id     = id;
            event.finish = s.finish;
            return event;
        }
        // those who have got a token come for the next one
        if (!all_have_come()) {
            turn_ended.wait_for(lock, patience, [&] { return taken || all_have_come(); });
            if (taken) {
                continue;
            }
        }

        taken    = true;
        computed = waited_for;
        lock.unlock();

        events             out;
        std::exception_ptr failed;
        try {
            step(out);
            if (stop_requested()) {
                throw interrupted();
            }
        } catch (...) {
            failed = std::current_exception();
        }
        lock.lock();
        tell(out);
        taken = false;
        turn_ended.notify_all();
        if (failed) {
            std::rethrow_exception(failed);
        }
    }
}

bool engine::all_have_come() const {
    return std::all_of(computed.begin(), computed.end(), [this](int64_t id) {
        const auto it = std::find_if(all.begin(), all.end(), [id](const slot & s) { return s.id == id; });
        return it == all.end() || it->now != slot::state::generating || waited_for.count(id) > 0;
    });
}

void engine::tell(events & out) {
    const auto opened = std::stable_partition(out.begin(), out.end(), [](const slot_event & event) { return !event.opened; });
    for (auto it = opened; it != out.end(); ++it) {
        at(it->id).untold.push_back(std::move(*it));
    }
    out.erase(opened, out.end());
}

//
// what they ask for
//

void engine::supersede() {
    events cancelled_now;
    end_cancelled(cancelled_now);
    if (n_idle() > 0) {
        return;
    }
    const std::lock_guard<std::mutex> lock(turns);

    slot * oldest = nullptr;
    for (auto & s : all) {
        if (s.request.opened && waited_for.count(s.id) == 0 && (!oldest || s.id < oldest->id)) {
            oldest = &s;
        }
    }
    if (oldest) {
        auto nobody = event_of(*oldest);
        end(*oldest, nobody);
    }
}

int64_t engine::open(const std::string & text, const std::vector<image> & images, bool add_bos, int64_t reserve,
        const std::optional<picture_options> & pictures, const std::optional<std::string> & fastv, const text_spans & spans) {
    const log_scope log(options.verbose);

    require_memory();

    auto request = prepare(text, images, add_bos, pictures.value_or(in_force), fastv, reserve, spans);
    request.opened = true;

    const turn mine(*this);
    supersede();
    return give_slot(std::move(request));
}

void engine::read(int64_t id, const progress_fn & progress) {
    const log_scope log(options.verbose);

    try {
        const auto event = wait(id, progress);
        if (event.failure) {
            throw *event.failure;
        }
        if (!event.ready) {
            throw error(error_kind::closed, "this request was cancelled");
        }
    } catch (...) {
        const turn mine(*this);
        if (slot * s = find(id)) {
            auto nobody = event_of(*s);
            end(*s, nobody);
        }
        throw;
    }
}

void engine::begin(int64_t id, const sampling_options & sampling, int64_t n_probs) {
    const log_scope log(options.verbose);

    auto       how = make_sampling(sampling, n_probs);
    const turn mine(*this);
    auto &     s = at(id);

    s.logits           = logits_of(s);
    lately_ended.erase(id);
    s.now              = slot::state::ready;
    s.finish           = nullptr;
    s.request.opened   = true;
    s.request.sampling = std::move(how);
    s.untold.clear();

    s.counts.generated_tokens = 0;
    s.counts.generate_ms      = 0;
}

std::optional<slot_event> engine::next(int64_t id) {
    const log_scope log(options.verbose);

    std::optional<slot_event> event;
    {
        const turn mine(*this);
        auto &     s = at(id);

        if (s.now == slot::state::ready && s.request.sampling.sampler) {
            events out;
            sample(s, s.logits.data(), out);
            event = std::move(out.front());
        } else if (s.now == slot::state::ready) {
            throw error(error_kind::option, "generation was not started");
        }
    }
    if (!event) {
        event = wait(id, {});
    }
    if (event->failure) {
        throw *event->failure;
    }
    if (event->token == LLAMA_TOKEN_NULL) {
        return std::nullopt;
    }
    return event;
}

const char * engine::why_finished(int64_t id) const {
    const turn mine(*this);
    const auto it = lately_ended.find(id);

    return it == lately_ended.end() ? at(id).finish : it->second.finish;
}

void engine::feed(int64_t id, llama_token token) {
    const log_scope log(options.verbose);

    if (token < 0 || token >= n_vocab()) {
        throw error(error_kind::option, "token " + std::to_string(token) + " is out of range: the vocabulary has " + std::to_string(n_vocab()) + " tokens");
    }
    require_memory();
    start_workers(most_threads(options));

    const turn mine(*this);
    auto &     s = at(id);

    if (s.evaluated.empty()) {
        throw error(error_kind::option, "there are no logits: nothing has been evaluated");
    }
    prompt_piece piece;
    piece.token = token;

    events out;
    was_stopped = false;
    lately_ended.erase(id);
    s.now            = slot::state::ready;
    s.request.opened = true;
    run({ { &s, { piece }, true } }, out);

    if (was_stopped) {
        throw interrupted();
    }
    if (!out.empty() && out.front().failure) {
        throw *out.front().failure;
    }
}

std::vector<float> engine::logits(int64_t id) {
    const turn mine(*this);
    return logits_of(at(id));
}

std::vector<float> engine::logits_of(const slot & s) {
    if (!s.logits.empty()) {
        return s.logits;
    }
    const float * res = s.evaluated.empty() || decoded_last != &s ? nullptr : llama_get_logits_ith(ctx.get(), -1);
    if (!res) {
        throw error(error_kind::option, s.evaluated.empty() ? "there are no logits: nothing has been evaluated" :
                "there are no logits: another request was computed, or a picture was evaluated last");
    }
    return std::vector<float>(res, res + n_vocab());
}

} // namespace pyfastv
