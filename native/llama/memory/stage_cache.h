#pragma once

#include "stages/sequence.h"

#include "llama-memory.h"

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

struct llama_cparams;
struct llama_model;

namespace pyfastv {

// Kinds of memory that a stage can have; a file each.
enum class memory_kind {
    kv,     // llama/memory/kv.cpp: llama_kv_cache, of keys and values or of latent keys alone (MLA)
    iswa,   // llama/memory/iswa.cpp: llama_kv_cache_iswa, of models with sliding windows
    hybrid, // llama/memory/hybrid.cpp: llama_memory_hybrid, of models with recurrent layers beside attention
};

// How the memory of a context was made; those of the stages are made alike.
struct cache_layout {
    memory_kind kind;
    ggml_type   type_k;
    ggml_type   type_v;
    bool        swa_full; // layers with sliding windows have as many cells as the others
};

// t, y and x, which a KV cell knows
inline position cell_key(const position & pos) { return { pos[0], pos[1], pos[2] }; }

struct kv_bytes {
    size_t allocated = 0;
    size_t used      = 0; // by cells in use
    size_t cell      = 0; // of one cell of the layers that see everything
};

// The memory of one stage: of the layers [il0, il1), whatever kind it is. "Cells" are those of the layers that see everything,
// which give scores, unless it says otherwise.
class stage_cache {
public:
    // The one switch of kinds. n_cells: for all sequences together.
    static std::unique_ptr<stage_cache> make(const llama_model & model, const llama_cparams & cparams, cache_layout layout,
            int32_t il0, int32_t il1, uint32_t n_cells);

    // of a cache that llama.cpp made; throws unsupported if it is of no kind that is known
    static cache_layout layout_of(const llama_memory_i & memory, const llama_model & model);

    virtual ~stage_cache() = default;

    // as it was made: a cache without layers could not tell
    virtual cache_layout layout() const = 0;

    virtual llama_memory_i & memory() const = 0;

    // gives the cache away
    virtual std::unique_ptr<llama_memory_i> release() = 0;

    // The next ubatch of a batch, as llama.cpp splits it for such a memory; of size 0 behind the last.
    virtual llama_ubatch split(llama_batch_allocr & batch, uint32_t n_ubatch, bool embd_all) const;

    // Slots for the ubatches; null if there is no room.
    virtual llama_memory_context_ptr prepare(const std::vector<llama_ubatch> & ubatches) = 0;

    virtual uint32_t n_cells()      const = 0;
    virtual uint32_t n_cells_used() const = 0;
    virtual uint32_t n_seq_max()    const = 0;
    virtual kv_bytes bytes()        const = 0;

    // the cell of every token of a sequence, by what cell_key() makes of its position
    using cells = std::map<position, uint32_t>;
    virtual cells cells_of(llama_seq_id seq_id) const = 0;
    virtual cells cells_of_windows(llama_seq_id seq_id) const = 0; // of layers with sliding windows; empty if there are none

    // positions in time of the first n cells; 0: it is empty
    virtual std::vector<llama_pos> positions(size_t n) const = 0;

    // of what is remembered of a sequence in all of its length; -1: nothing
    virtual llama_pos first_position(llama_seq_id seq_id) const = 0;

    // Tokens further back than this lose their cells in some layers, without anybody being told; 0: none does.
    virtual int32_t forgets_after() const = 0;

    // May rows be added in the middle later? Unless layers are recurrent they find what they would have found in their turn.
    virtual bool can_recall() const = 0;

    // What comes behind this position, or any later one, may be taken back: rows that follow find all that they see. 0: whatever.
    virtual llama_pos removable_from(llama_seq_id seq_id) const = 0;

    // forgets one token of a sequence, whatever others have its position in time
    virtual void remove(llama_seq_id seq_id, const position & pos) = 0;

    // Some layers have one state of all that a sequence was, in the order in which it came, in place of cells. Rows of several
    // sequences are no ubatch of theirs unless each has as many. What was dropped is not in it, what is recalled comes in now. It
    // goes back by as much as removable_from() says, and to what states_of() has kept.
    virtual bool is_recurrent() const { return false; }

    struct states {
        llama_pos              pos  = -1; // of the row that came last; -1: none has come
        uint32_t               back = 0;  // rows that were taken back since
        std::vector<uint8_t>   bytes;
        std::vector<llama_pos> behind;    // the rows behind which there is a state, the last one first
    };
    virtual states states_of(llama_seq_id /*seq_id*/) const { return {}; }

    // Cells stay, for the caller to remove. Where the sequence had a state then and has one now, which is so after a failed ubatch,
    // nothing is allocated, nor thrown.
    virtual void put_back(llama_seq_id /*seq_id*/, const states & /*before*/) {}

    // As memory().seq_cp() and seq_keep(); rows that were taken back are so for a copy too, and for no sequence that comes later.
    virtual void copy(llama_seq_id from, llama_seq_id to, llama_pos p0, llama_pos p1);
    virtual void keep_only(llama_seq_id seq_id);

    // As memory().state_read(), which throws std::runtime_error; of what the sequence had in the layers that are read, nothing
    // stays. llama.cpp leaves all of it where the state has no cells.
    virtual void read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags);

    // Of cells that were read from a state: throws std::runtime_error if one has no sequence, a position that none can have,
    // or is in a window alone.
    virtual void check_cells() const = 0;

    // forgets a sequence, cells that check_cells() refuses included, and what was read into them
    virtual void drop(llama_seq_id seq_id) = 0;
};

// of any memory that is of one of these kinds; zeros for others
kv_bytes kv_bytes_of(const llama_memory_i & memory);

} // namespace pyfastv
