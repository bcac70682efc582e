#include "runner/checkpoints.h"

#include <set>
#include <utility>

namespace pyfastv {

checkpoint_store::list::const_iterator checkpoint_store::last(llama_seq_id seq_id, size_t n_pieces) const {
    auto res = checkpoints.end();
    for (auto it = checkpoints.begin(); it != checkpoints.end(); ++it) {
        if (it->seq_id == seq_id && it->n_pieces <= n_pieces && (res == checkpoints.end() || it->n_pieces > res->n_pieces)) {
            res = it;
        }
    }
    return res;
}

size_t checkpoint_store::reach(llama_seq_id seq_id, size_t n_pieces) const {
    const auto it = last(seq_id, n_pieces);

    return it == checkpoints.end() ? 0 : it->n_pieces;
}

const checkpoint_store::checkpoint * checkpoint_store::find(llama_seq_id seq_id, size_t n_pieces) {
    const auto it = last(seq_id, n_pieces);
    if (it == checkpoints.end()) {
        return nullptr;
    }
    checkpoints.splice(checkpoints.begin(), checkpoints, it);

    return &checkpoints.front();
}

bool checkpoint_store::make_room(size_t n_bytes) {
    if (n_bytes > max_bytes) {
        return false;
    }
    while (bytes() > max_bytes - n_bytes) {
        checkpoints.pop_back();
    }
    return true;
}

void checkpoint_store::put(llama_seq_id seq_id, size_t n_pieces, std::vector<uint8_t> state) {
    checkpoints.push_front({ seq_id, n_pieces, std::make_shared<const std::vector<uint8_t>>(std::move(state)) });
}

void checkpoint_store::share(llama_seq_id from, llama_seq_id to, size_t n_pieces) {
    for (auto it = checkpoints.begin(); it != checkpoints.end(); ++it) {
        if (it->seq_id == from && it->n_pieces <= n_pieces) {
            checkpoints.insert(it, { to, it->n_pieces, it->state });
        }
    }
}

void checkpoint_store::forget_behind(llama_seq_id seq_id, size_t n_pieces) {
    checkpoints.remove_if([=](const checkpoint & c) { return c.seq_id == seq_id && c.n_pieces > n_pieces; });
}

size_t checkpoint_store::bytes() const {
    std::set<const void *> counted;

    size_t res = 0;
    for (const auto & each : checkpoints) {
        res += counted.insert(each.state.get()).second ? each.state->size() : 0;
    }
    return res;
}

} // namespace pyfastv
