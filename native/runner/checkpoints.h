#pragma once

#include "llama.h"

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <vector>

namespace pyfastv {

// Recurrent layers have one state of all that a slot holds, which does not go back. So it is copied where a later prompt is
// likely to part from this one: partial states of llama.h, whose keys and values stay in the context. What was used least
// recently leaves first.
class checkpoint_store {
public:
    explicit checkpoint_store(size_t max_bytes) : max_bytes(max_bytes) {}

    using state_ptr = std::shared_ptr<const std::vector<uint8_t>>;

    struct checkpoint {
        llama_seq_id seq_id;   // of the slot that can go back to it
        size_t       n_pieces; // of what the slot holds, in front of it
        state_ptr    state;    // copies of a slot share it
    };

    // Others leave until so many bytes more fit. False, and none leaves: they never do.
    bool make_room(size_t n_bytes);

    void put(llama_seq_id seq_id, size_t n_pieces, std::vector<uint8_t> state);

    // The last of a slot behind at most n_pieces, which is used now; null: there is none. Valid until the next call.
    const checkpoint * find(llama_seq_id seq_id, size_t n_pieces);

    // in pieces; 0: there is none
    size_t reach(llama_seq_id seq_id, size_t n_pieces) const;

    // a copy of the slot, of its first n_pieces, has them too
    void share(llama_seq_id from, llama_seq_id to, size_t n_pieces);

    // the slot holds no more than n_pieces
    void forget_behind(llama_seq_id seq_id, size_t n_pieces);

    size_t bytes() const;

private:
    using list = std::list<checkpoint>;

    list::const_iterator last(llama_seq_id seq_id, size_t n_pieces) const;

    const size_t max_bytes;

    list checkpoints; // most recently used first
};

} // namespace pyfastv
