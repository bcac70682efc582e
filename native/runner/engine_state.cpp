// engine: what a slot holds, to bytes and back

#include "runner/engine.h"

#include "runner/errors.h"
#include "runner/log.h"
#include "runner/slot_state.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <tuple>
#include <utility>

namespace pyfastv {

std::vector<uint8_t> engine::save(int64_t id) {
    const log_scope log(options.verbose);

    require_memory();
    const turn mine(*this);
    auto &     s = at(id);

    if (!s.idle()) {
        const std::lock_guard<std::mutex> lock(turns);
        if (!s.request.opened || waited_for.count(id) > 0) {
            throw error(error_kind::option, "a request that is computed cannot be saved: wait for its end");
        }
        auto nobody = event_of(s);
        end(s, nobody);
    }
    if (s.evaluated.empty()) {
        throw error(error_kind::option, "there is nothing to save: nothing has been evaluated");
    }

    auto         res   = pack({ s.schedule.text, s.evaluated, s.questions });
    const size_t begin = res.size();
    const size_t size  = llama_state_seq_get_size(ctx.get(), s.seq_id);

    res.resize(begin + size);
    if (size == 0 || llama_state_seq_get_data(ctx.get(), res.data() + begin, size, s.seq_id) != size) {
        throw log.failure(error_kind::decode, "the context cannot be saved");
    }
    return res;
}

int64_t engine::restore(const uint8_t * state, size_t size) {
    const log_scope log(options.verbose);

    size_t     begin    = 0;
    auto       contents = unpack(state, size, n_vocab(), n_ctx_slot, begin);
    const auto schedule = parse_request_schedule(contents.schedule, n_layer());

    require_memory();
    const turn mine(*this);
    supersede();
    if (n_idle() == 0) {
        throw error(error_kind::option, "all " + std::to_string(n_slots()) + " slots are busy");
    }
    make_fit(schedule);

    // of the idle ones that which was not used for longest, empty ones first
    auto & s = *std::min_element(all.begin(), all.end(), [](const slot & a, const slot & b) {
        return std::make_tuple(!a.idle(), a.n_tokens > 0, a.last_used) < std::make_tuple(!b.idle(), b.n_tokens > 0, b.last_used);
    });
    clear(s);
    if (decoded_last == &s) {
        decoded_last = nullptr;
    }
    choose_by(s, schedule);

    // cells that copies share are counted for each: at worst more is let go than has to be
    const auto n_held = [this] {
        return std::accumulate(all.begin(), all.end(), (int64_t) 0, [](int64_t sum, const slot & one) { return sum + one.n_tokens; });
    };
    while (n_held() + contents.n_tokens() > (int64_t) n_slots()*n_ctx_slot && evict()) {
    }

    size_t n = 0;
    try {
        n = llama_state_seq_set_data(ctx.get(), state + begin, size - begin, s.seq_id);
    } catch (...) {
        clear(s);
        throw;
    }
    // behind a picture the next position need not be that of its last row and one
    const auto n_past = contents.n_past();
    const bool ends   = contents.evaluated.back().visual() ||
            llama_memory_seq_pos_max(llama_get_memory(ctx.get()), s.seq_id) == n_past - 1;

    if (n != size - begin || !ends) {
        clear(s);
        throw error(error_kind::option, "the context cannot be restored: " + log.reason("it is not what its header says"));
    }
    s.n_past    = n_past;
    s.n_tokens  = contents.n_tokens();
    s.evaluated = std::move(contents.evaluated);
    s.questions = std::move(contents.questions);

    s.id      = s.last_used = ++n_requests;
    s.now     = slot::state::idle;
    s.waits   = false;
    s.finish  = nullptr;
    s.counts  = {};
    s.request = {};
    s.logits.clear();
    s.untold.clear();
    s.forget_picture();

    return s.id;
}

} // namespace pyfastv
