#include "stages/staged_memory.h"

#include "stages/flight.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

namespace pyfastv {
namespace {

// llama.h: negative positions stand for the ends
llama_pos begin_pos(llama_pos p0) { return p0 < 0 ? 0 : p0; }
llama_pos end_pos  (llama_pos p1) { return p1 < 0 ? INT32_MAX : p1; }

} // namespace

//
// staged_memory
//

staged_memory::staged_memory(std::vector<int32_t> first_layers, std::vector<std::unique_ptr<stage_cache>> caches, const row_width & width,
        const pyfastv_params & own) :
    schedules(own), first_layers_(std::move(first_layers)), width(width), caches(std::move(caches)) {}

void staged_memory::note_empty() {
    if (!schedules.any_brought()) {
        return;
    }
    for (llama_seq_id id = 0; id < (llama_seq_id) caches[0]->n_seq_max(); ++id) {
        if (seq_pos_max(id) < 0) {
            schedules.empty(id);
        }
    }
}

staged_memory::~staged_memory() = default;

size_t staged_memory::n_pending() const {
    size_t n = 0;
    for (const auto & [id, seq] : sequences) {
        n += seq.pending.size();
    }
    return n;
}

llama_memory_context_ptr staged_memory::init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) {
    balloc.split_reset();

    const auto split = [&] { return caches[0]->split(balloc, n_ubatch, embd_all); };

    std::vector<llama_ubatch> ubatches;
    for (auto ubatch = split(); ubatch.n_tokens > 0; ubatch = split()) {
        ubatches.push_back(std::move(ubatch));
    }

    staged_memory_context::parts_t parts;

    for (auto & cache : caches) {
        parts.push_back(cache->prepare(ubatches));
        if (!parts.back()) {
            return std::make_unique<staged_memory_context>(LLAMA_MEMORY_STATUS_FAILED_PREPARE);
        }
    }

    return std::make_unique<staged_memory_context>(*this, std::move(parts));
}

llama_memory_context_ptr staged_memory::init_full() {
    staged_memory_context::parts_t parts;
    for (auto & cache : caches) {
        parts.push_back(cache->memory().init_full());
    }
    return std::make_unique<staged_memory_context>(*this, std::move(parts));
}

llama_memory_context_ptr staged_memory::init_update(llama_context * lctx, bool optimize) {
    staged_memory_context::parts_t parts;
    for (auto & cache : caches) {
        parts.push_back(cache->memory().init_update(lctx, optimize));
    }
    return std::make_unique<staged_memory_context>(*this, std::move(parts));
}

llama_memory_context_ptr staged_memory::init_stage(int s, const std::vector<llama_ubatch> & ubatches) {
    staged_memory_context::parts_t parts(caches.size());

    parts[s] = caches[s]->prepare(ubatches);
    if (!parts[s]) {
        return nullptr;
    }

    return std::make_unique<staged_memory_context>(*this, std::move(parts));
}

bool staged_memory::get_can_shift() const {
    return std::all_of(caches.begin(), caches.end(), [](const auto & cache) { return cache->memory().get_can_shift(); });
}

void staged_memory::take_back(const flight & rows) {
    for (size_t f = 0; f < rows.flows.size(); ++f) {
        const auto & flow = rows.flows[f];

        for (int s = 1; s < n_stages(); ++s) {
            caches[s]->put_back(flow.seq_id, rows.before[f][s - 1]);
        }
        forget_later(flow.seq_id, flow.seq->pending.front().pos[0], flow.recalled);
    }
}

void staged_memory::abandon(llama_seq_id seq_id) {
    if (in_air && (seq_id < 0 || in_air->has(seq_id))) {
        const auto rows = std::move(in_air);
        take_back(*rows);
    }
}

void staged_memory::clear(bool data) {
    forget_weights();
    in_air.reset();

    for (auto & cache : caches) {
        cache->memory().clear(data);
    }
    sequences.clear();
    schedules.empty_all();
}

const staged_memory::weights_of_sequences & staged_memory::weights(int s) const {
    // what is outside a window loses its cell without anybody being told
    const auto known = weights_.find(s);
    if (known != weights_.end() && in_flight.empty() && caches[s]->forgets_after() == 0) {
        return known->second;
    }

    weights_of_sequences res;

    const auto add = [&](llama_seq_id id, const std::vector<visual_token> & tokens) {
        const auto weighs = [s](const visual_token & token) { return !token.gone && token.entered > s && token.size_in(s) > 1.0f; };

        if (std::none_of(tokens.begin(), tokens.end(), weighs)) {
            return;
        }
        const auto all     = caches[s]->cells_of(id);
        const auto windows = caches[s]->cells_of_windows(id);

        for (const auto & token : tokens) {
            if (!weighs(token)) {
                continue;
            }
            const float log_size = std::log(token.size_in(s));
            if (const auto it = all.find(cell_key(token.pos)); it != all.end()) {
                res[id].all.push_back({ it->second, log_size });
            }
            if (const auto it = windows.find(cell_key(token.pos)); it != windows.end()) {
                res[id].windows.push_back({ it->second, log_size });
            }
        }
    };

    for (const auto & [id, seq] : sequences) {
        const auto moving = in_flight.find(id);
        add(id, moving == in_flight.end() ? seq.tokens : *moving->second);
    }

    return weights_[s] = std::move(res);
}

void staged_memory::forget_later(llama_seq_id seq_id, llama_pos p0, const std::vector<turn::recall> & recalled) {
    forget_weights();

    for (int s = 1; s < n_stages(); ++s) {
        if (p0 != INT32_MAX) {
            caches[s]->memory().seq_rm(seq_id, p0, -1);
        }
        for (const auto & [token, before] : recalled) {
            if (s >= before.entered) {
                caches[s]->remove(seq_id, before.pos);
            }
        }
    }
}

llama_pos staged_memory::later_window_from(llama_seq_id seq_id) const {
    llama_pos res = 0;
    for (int s = 1; s < n_stages(); ++s) {
        res = std::max(res, caches[s]->removable_from(seq_id));
    }
    return res;
}

llama_pos staged_memory::removable_from(llama_seq_id seq_id) const {
    const llama_pos later = later_window_from(seq_id);
    const auto      it    = sequences.find(seq_id);

    return std::max(caches[0]->removable_from(seq_id), it == sequences.end() ? later : it->second.removable_from(later, !caches[0]->is_recurrent()));
}

bool staged_memory::can_remove(llama_seq_id seq_id, llama_pos p0, llama_pos p1) const {
    const llama_pos first = caches[0]->first_position(seq_id);
    const llama_pos last  = seq_pos_max(seq_id);

    // nothing, or all
    if (p0 > last || p0 <= first) {
        return true;
    }
    if (p1 > last) {
        return p0 >= removable_from(seq_id);
    }
    // a part in the middle, which may be the end of what has come to a later stage
    return std::none_of(caches.begin(), caches.end(), [&](const auto & cache) {
        const llama_pos end = cache->memory().seq_pos_max(seq_id);

        return cache->is_recurrent() && p0 <= end && end < p1 && p0 < cache->removable_from(seq_id);
    });
}

bool staged_memory::seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    forget_weights();

    p0 = begin_pos(p0);
    p1 = end_pos(p1);
    abandon(seq_id);

    const llama_seq_id first = std::max(seq_id, 0);
    const llama_seq_id last  = seq_id < 0 ? (llama_seq_id) caches[0]->n_seq_max() - 1 : seq_id;

    for (llama_seq_id id = first; id <= last; ++id) {
        if (!can_remove(id, p0, p1)) {
            return false;
        }
    }

    for (auto & [id, seq] : sequences) {
        if (id < first || id > last) {
            continue;
        }
        if (p1 > seq_pos_max(id)) {
            const auto undone = seq.truncate(p0);
            forget_later(id, undone.from, undone.recalled);
        } else {
            seq.erase(p0, p1);
        }
    }

    bool res = true;
    for (auto & cache : caches) {
        for (llama_seq_id id = first; id <= last; ++id) { // recurrent layers know of no "all sequences"
            res &= cache->memory().seq_rm(id, p0, p1 == INT32_MAX ? -1 : p1);
        }
    }
    note_empty();
    return res;
}

void staged_memory::seq_cp(llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) {
    forget_weights();

    if (seq_id_src == seq_id_dst) {
        return;
    }
    abandon(seq_id_src);
    abandon(seq_id_dst);

    if (caches[0]->is_recurrent()) {
        const llama_pos last = seq_pos_max(seq_id_src);
        if (last >= 0 && (begin_pos(p0) > caches[0]->first_position(seq_id_src) || end_pos(p1) <= last)) {
            LLAMA_LOG_ERROR("%s: a part of sequence %d cannot be copied: its recurrent layers have one state, of all of it\n", __func__, seq_id_src);
            return;
        }
        seq_rm(seq_id_dst, -1, -1); // as its state is replaced
    }

    sequence         copy;
    sequence::undone undone;
    if (const auto src = sequences.find(seq_id_src); src != sequences.end()) {
        copy = src->second;

        // rows that would wait again need what the windows of the later layers had before them
        copy.settle(later_window_from(seq_id_src));

        // a question that was not copied has chosen nothing
        undone = copy.truncate(end_pos(p1));

        if (begin_pos(p0) > 0) {
            copy.erase(0, begin_pos(p0));
        }
    }

    for (int s = 0; s < n_stages(); ++s) {
        caches[s]->copy(seq_id_src, seq_id_dst, p0, s == 0 ? p1 : std::min(end_pos(p1), undone.from));
    }
    forget_later(seq_id_dst, INT32_MAX, undone.recalled);

    if (const auto dst = sequences.find(seq_id_dst); seq_pos_max(seq_id_dst) >= 0 && (dst == sequences.end() || dst->second.empty())) {
        schedules.bring(seq_id_dst, schedules.of(seq_id_src));
    }

    if (sequences.count(seq_id_src)) {
        sequences[seq_id_dst].append(std::move(copy));
    }
}

void staged_memory::seq_keep(llama_seq_id seq_id) {
    forget_weights();
    abandon(-1);

    for (auto & cache : caches) {
        cache->keep_only(seq_id);
    }
    for (auto it = sequences.begin(); it != sequences.end(); ) {
        it = it->first == seq_id ? std::next(it) : sequences.erase(it);
    }
    note_empty();
}

void staged_memory::seq_add(llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) {
    forget_weights();
    abandon(seq_id);

    for (auto & cache : caches) {
        cache->memory().seq_add(seq_id, p0, p1, shift);
    }
    if (const auto it = sequences.find(seq_id); it != sequences.end()) {
        it->second.shift(begin_pos(p0), end_pos(p1), shift);
    }
}

void staged_memory::seq_div(llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) {
    forget_weights();
    abandon(seq_id);

    for (auto & cache : caches) {
        cache->memory().seq_div(seq_id, p0, p1, d);
    }
    if (const auto it = sequences.find(seq_id); it != sequences.end()) {
        it->second.divide(begin_pos(p0), end_pos(p1), d);
    }
}

llama_pos staged_memory::seq_pos_min(llama_seq_id seq_id) const {
    const llama_pos min  = caches[0]->memory().seq_pos_min(seq_id);
    const llama_pos from = removable_from(seq_id);
    if (min < 0 || from == 0) {
        return min;
    }
    // a cache that was made to forget nothing is taken for one without windows
    return std::max(min, from - 1 - caches[0]->forgets_after());
}

llama_pos staged_memory::seq_pos_max(llama_seq_id seq_id) const {
    return caches[0]->memory().seq_pos_max(seq_id);
}

std::map<ggml_backend_buffer_type_t, size_t> staged_memory::memory_breakdown() const {
    std::map<ggml_backend_buffer_type_t, size_t> res;
    for (const auto & cache : caches) {
        for (const auto & [buft, size] : cache->memory().memory_breakdown()) {
            res[buft] += size;
        }
    }
    return res;
}

//
// staged_memory_context
//

staged_memory_context::staged_memory_context(llama_memory_status status) : status(status) {}

static llama_memory_status combine(const staged_memory_context::parts_t & parts) {
    auto status = LLAMA_MEMORY_STATUS_NO_UPDATE;
    for (const auto & part : parts) {
        if (part) {
            status = llama_memory_status_combine(status, part->get_status());
        }
    }
    return status;
}

staged_memory_context::staged_memory_context(const staged_memory & memory, parts_t parts) :
    memory(&memory), status(combine(parts)), parts(std::move(parts)) {}

const staged_memory_context * staged_memory_context::from(const llama_memory_context_i * mctx) {
    return dynamic_cast<const staged_memory_context *>(mctx);
}

int staged_memory_context::stage_of(int il) const {
    const auto & first = memory->first_layers();

    return (int) (std::upper_bound(first.begin(), first.end(), il) - first.begin()) - 1;
}

bool staged_memory_context::next() {
    bool res = true;
    for (auto & part : parts) {
        if (part) {
            res &= part->next();
        }
    }
    return res;
}

bool staged_memory_context::apply() {
    bool res = true;
    for (auto & part : parts) {
        // an update that one stage does not need is no failure
        if (part && part->get_status() != LLAMA_MEMORY_STATUS_NO_UPDATE) {
            res &= part->apply();
        }
    }
    return res;
}

const llama_ubatch & staged_memory_context::get_ubatch() const {
    return (*std::find_if(parts.begin(), parts.end(), [](const auto & part) { return part != nullptr; }))->get_ubatch();
}

llama_memory_status staged_memory_context::get_status() const {
    return status;
}

} // namespace pyfastv
