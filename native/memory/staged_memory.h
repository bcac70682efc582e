#pragma once

#include "memory/pending_rows.h"

#include "llama-kv-cache.h"
#include "llama-memory.h"

#include <array>
#include <memory>
#include <vector>

namespace pyfastv {

constexpr int n_stages = 2;

using kv_cache_ptr = std::unique_ptr<llama_kv_cache>;

// bytes of one cell, over all layers of the cache
size_t cell_bytes(const llama_kv_cache & kv);

// The memory of a context that runs in stages: an ordinary KV cache for the layers of each stage, and the rows that
// wait between them. A token has a cell in stage 0, and in stage 1 if it was kept. Every operation on positions goes
// to all of them. One sequence.
class staged_memory : public llama_memory_i {
public:
    // kv[0] holds the layers [0, k), kv[1] the layers from k on; both have the same number of cells
    staged_memory(int32_t k, std::array<kv_cache_ptr, n_stages> kv, int64_t n_embd);

    // llama_memory_i

    llama_memory_context_ptr init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) override;
    llama_memory_context_ptr init_full() override;
    llama_memory_context_ptr init_update(llama_context * lctx, bool optimize) override;

    bool get_can_shift() const override;

    void clear(bool data) override;

    bool seq_rm  (llama_seq_id seq_id, llama_pos p0, llama_pos p1) override;
    void seq_cp  (llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) override;
    void seq_keep(llama_seq_id seq_id) override;
    void seq_add (llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) override;
    void seq_div (llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) override;

    // the positions of stage 0: a dropped token is gone from the later layers only
    llama_pos seq_pos_min(llama_seq_id seq_id) const override;
    llama_pos seq_pos_max(llama_seq_id seq_id) const override;

    std::map<ggml_backend_buffer_type_t, size_t> memory_breakdown() const override;

    // Throws std::runtime_error while rows are pending, and when the state is not of these stages.
    void state_write(llama_io_write_i & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0) const override;
    void state_read (llama_io_read_i  & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0) override;

    // the stages

    int32_t k() const { return k_; }

    llama_kv_cache & kv(int s) const { return *kv_[s]; }

    pending_rows pending;

    // Slots for the ubatches in one stage alone: sinfos gets the cells of every ubatch. Null if there is no room.
    llama_memory_context_ptr init_stage(int s, std::vector<llama_ubatch> ubatches, llama_kv_cache::slot_info_vec_t & sinfos);

private:
    const int32_t k_;

    std::array<kv_cache_ptr, n_stages> kv_;
};

// The contexts of one stage or of all of them, for one batch.
class staged_memory_context : public llama_memory_context_i {
public:
    using parts_t = std::array<llama_memory_context_ptr, n_stages>;

    explicit staged_memory_context(llama_memory_status status); // a failure
    staged_memory_context(int32_t k, parts_t parts);            // a part that is null does not run

    // null if the memory behind it has no stages
    static const staged_memory_context * from(const llama_memory_context_i * mctx);

    bool next()  override;
    bool apply() override;

    const llama_ubatch & get_ubatch() const override;
    llama_memory_status  get_status() const override;

    int32_t k() const { return k_; }

    const llama_kv_cache_context * part(int s) const;

private:
    const int32_t             k_ = 0;
    const llama_memory_status status;

    parts_t parts;
};

} // namespace pyfastv
