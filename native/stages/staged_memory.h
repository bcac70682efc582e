#pragma once

#include "stages/schedules.h"
#include "stages/sequence.h"
#include "llama/memory/stage_cache.h"

#include "llama/interfaces.h"

#include <functional>
#include <map>
#include <memory>
#include <vector>

namespace pyfastv {

struct flight; // stages/flight.h

// The memory of a context that runs in stages: a KV cache for the layers of each stage, and for each sequence the rows
// that wait at the first cut, the visual tokens, and the turns that can be taken back. A token has a cell in stage 0, and
// in every stage that it entered. Every operation on sequences goes to all of them.
class staged_memory : public llama_memory_i {
public:
    // first_layers[s] is the first layer of stage s; caches[s] holds its layers. own: the schedule that they are of
    staged_memory(std::vector<int32_t> first_layers, std::vector<std::unique_ptr<stage_cache>> caches, const row_width & width, const pyfastv_params & own);
    ~staged_memory() override;

    // llama_memory_i

    llama_memory_context_ptr init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) override;
    llama_memory_context_ptr init_full() override;
    llama_memory_context_ptr init_update(llama_context * lctx, bool optimize) override;

    bool get_can_shift() const override;

    void clear(bool data) override;

    // False, and nothing is changed: recurrent states do not go back to p0, or what comes behind it, or the rows that would wait
    // again, would look into sliding windows that have been forgotten.
    bool seq_rm  (llama_seq_id seq_id, llama_pos p0, llama_pos p1) override;
    void seq_cp  (llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) override;
    void seq_keep(llama_seq_id seq_id) override;
    void seq_add (llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) override;
    void seq_div (llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) override;

    // The positions of stage 0: a dropped token is gone from the later layers only. Where sliding windows have forgotten
    // what is before a position, llama.cpp's programs look whether seq_pos_min() is a window before it, and do not expect
    // that seq_rm() fails: it is as late as that takes.
    llama_pos seq_pos_min(llama_seq_id seq_id) const override;
    llama_pos seq_pos_max(llama_seq_id seq_id) const override;

    std::map<ggml_backend_buffer_type_t, size_t> memory_breakdown() const override;

    // Waiting and dropped rows included. With LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY the keys and values of layers that see
    // everything are left out, as llama.cpp does: the sequence must have them when it is read. state_read() throws
    // std::runtime_error if the state is broken, not of these stages, or does not fit what the sequence has, and what `admit`
    // throws; the header apart, the sequences that it was to replace are then empty.
    void state_write(llama_io_write_i & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0) const override;
    void state_read (llama_io_read_i  & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0) override;

    // the stages

    int32_t n_stages() const { return (int32_t) caches.size(); }

    const std::vector<int32_t> & first_layers() const { return first_layers_; }

    stage_cache & cache(int s) const { return *caches[s]; }

    // by their numbers; those that need none of this may be missing
    std::map<llama_seq_id, sequence> sequences;

    // A copy of a sequence has its schedule, and a state brings its own.
    sequence_schedules schedules;

    // of the context: throws std::runtime_error if a schedule that comes with a state cannot be run
    std::function<void(const pyfastv_params & schedule)> admit;

    int32_t n_ubatches = 0; // that were given a number

    // what `sequences` keep, copies that share it counted once
    const ledger_ptr archive      = std::make_shared<ledger>(); // hidden rows, and the attention that rows paid
    const ledger_ptr similarities = std::make_shared<ledger>();

    // What is added to the attention logits of KV cells in a stage: the log of the number of tokens that one stands for.
    // Sequences that share a cell may weigh it differently.
    struct cell_weight {
        uint32_t cell;
        float    log_size;
    };
    struct cell_weights {
        std::vector<cell_weight> all;     // of the layers that see everything
        std::vector<cell_weight> windows; // of those with sliding windows
    };
    using weights_of_sequences = std::map<llama_seq_id, cell_weights>;

    const weights_of_sequences & weights(int s) const;

    // call when the tokens, their sizes or their cells have changed
    void forget_weights() { weights_.clear(); }

    // tokens of sequences on their way through the later stages, which count instead of those in `sequences`
    std::map<llama_seq_id, const std::vector<visual_token> *> in_flight;

    // rows that go through the later stages in pieces; null: none
    std::unique_ptr<flight> in_air;

    // The later stages forget what they have of rows in the air, which wait as before.
    void take_back(const flight & rows);

    // If it has rows in the air they are taken back: call it before a sequence changes, or is read.
    void abandon(llama_seq_id seq_id);

    size_t n_pending() const;

    // Slots for the ubatches in one stage alone; null if there is no room.
    llama_memory_context_ptr init_stage(int s, const std::vector<llama_ubatch> & ubatches);

    // Later stages forget positions [p0, inf) of a sequence, and these tokens, from the stage `entered` on.
    void forget_later(llama_seq_id seq_id, llama_pos p0, const std::vector<turn::recall> & recalled);

    // do rows of a sequence that come back find what is in front of them? Recurrent states forget nothing, sliding windows may have
    bool remembers(llama_seq_id seq_id) const { return caches[0]->is_recurrent() || removable_from(seq_id) == 0; }

private:
    // stage_cache::removable_from() of the later stages
    llama_pos later_window_from(llama_seq_id seq_id) const;

    // the first position, beyond 0, from which on a sequence can be removed
    llama_pos removable_from(llama_seq_id seq_id) const;

    bool can_remove(llama_seq_id seq_id, llama_pos p0, llama_pos p1) const;

    // what was read must fit the cells
    void check_sequence(llama_seq_id seq_id) const;

    // those that hold nothing have no schedule from elsewhere
    void note_empty();

    // after the windows or the states were read: nothing of later rows stays, nor of tokens that had not entered
    void take_back_to_windows(llama_seq_id seq_id);

    const std::vector<int32_t> first_layers_;
    const row_width            width;

    std::vector<std::unique_ptr<stage_cache>> caches;

    mutable std::map<int, weights_of_sequences> weights_; // by stage, made when asked for
};

// The contexts of one stage or of all of them, for one batch.
class staged_memory_context : public llama_memory_context_i {
public:
    using parts_t = std::vector<llama_memory_context_ptr>;

    explicit staged_memory_context(llama_memory_status status);         // a failure
    staged_memory_context(const staged_memory & memory, parts_t parts); // a part that is null does not run

    // null if the memory behind it has no stages
    static const staged_memory_context * from(const llama_memory_context_i * mctx);

    bool next()  override;
    bool apply() override;

    const llama_ubatch & get_ubatch() const override;
    llama_memory_status  get_status() const override;

    int                  n_stages()       const { return (int) parts.size(); }
    int                  stage_of(int il) const;
    const staged_memory & stages()        const { return *memory; }

    const llama_memory_context_i * part(int s) const { return parts[s].get(); }

private:
    const staged_memory *     memory = nullptr;
    const llama_memory_status status;

    parts_t parts;
};

} // namespace pyfastv
