#pragma once

#include "memory/sequence.h"

#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"
#include "llama-memory.h"

#include <map>
#include <memory>
#include <vector>

struct llama_cparams;
struct llama_model;

namespace pyfastv {

// How the KV cache of a context was made; those of the stages are made alike.
struct cache_layout {
    ggml_type type_k;
    ggml_type type_v;
    bool      swa_full; // layers with sliding windows have as many cells as the others
};

// t, y and x, which a KV cell knows
inline position cell_key(const position & pos) { return { pos[0], pos[1], pos[2] }; }

// The KV cache for a range of layers: llama_kv_cache, or llama_kv_cache_iswa if the model has sliding windows.
class stage_cache {
public:
    stage_cache(const llama_model & model, const llama_cparams & cparams, cache_layout layout, int32_t il0, int32_t il1, uint32_t n_cells);

    // of a cache that llama.cpp made; throws unsupported if it is another kind of memory
    static cache_layout layout_of(const llama_memory_i & memory);

    // as it was made: a cache without layers could not tell
    const cache_layout & layout() const { return layout_; }

    llama_memory_i & memory() const { return *memory_; }

    // gives the cache away
    std::unique_ptr<llama_memory_i> release() { return std::move(memory_); }

    // of the layers that see everything; layers with sliding windows may have fewer cells
    const llama_kv_cache & base() const;

    // forgets tokens outside the sliding window
    bool    forgets() const;
    int32_t window()  const { return n_swa; }

    // From this position on a row of a sequence finds all that its sliding windows see; 0: from any. A saved sequence has
    // its last windows only, whatever this cache forgets.
    llama_pos window_from(llama_seq_id seq_id) const;

    // Slots for the ubatches; null if there is no room.
    llama_memory_context_ptr prepare(const std::vector<llama_ubatch> & ubatches);

    // the cell of every token of a sequence, by what cell_key() makes of its position
    using cells = std::map<position, uint32_t>;
    cells cells_of(llama_seq_id seq_id) const; // of the layers that see everything
    cells cells_of_windows(llama_seq_id seq_id) const; // of those with sliding windows; empty if there are none

    // forgets one token of a sequence, whatever others have its position in time
    void remove(llama_seq_id seq_id, const position & pos);

    // Of cells that were read from a state: throws std::runtime_error if one has no sequence, a position that none can have,
    // or is in a window alone.
    void check_cells() const;

    // forgets a sequence, cells that check_cells() refuses included, and what was read into them
    void drop(llama_seq_id seq_id);

private:
    template <typename F> void for_each_cache(F && f) const;

    const int32_t      n_swa;
    const cache_layout layout_;

    std::unique_ptr<llama_memory_i> memory_;

    llama_kv_cache      * plain = nullptr; // one of these is the memory
    llama_kv_cache_iswa * iswa  = nullptr;
};

// the KV bytes of any memory that is one of these kinds; zeros for others
struct kv_bytes {
    size_t allocated = 0;
    size_t used      = 0; // by cells in use
    size_t cell      = 0; // of one cell of the layers that see everything
};
kv_bytes kv_bytes_of(const llama_memory_i & memory);

} // namespace pyfastv
