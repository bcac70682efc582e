#include "memory/staged_memory.h"

#include "llama-batch.h"
#include "llama-io.h"

#include "ggml-backend.h"

#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

namespace pyfastv {
namespace {

// start of a saved state; stock llama.cpp's states start with a count of streams
constexpr char state_magic[8] = { 'p', 'y', 'f', 'a', 's', 't', 'v', '1' };

// llama.h: negative positions stand for the ends
llama_pos begin_pos(llama_pos p0) { return p0 < 0 ? 0 : p0; }
llama_pos end_pos  (llama_pos p1) { return p1 < 0 ? INT32_MAX : p1; }

} // namespace

//
// staged_memory
//

staged_memory::staged_memory(int32_t k, std::array<kv_cache_ptr, n_stages> kv, int64_t n_embd) :
    pending(n_embd), k_(k), kv_(std::move(kv)) {}

llama_memory_context_ptr staged_memory::init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool /*embd_all*/) {
    const auto failed = [] { return std::make_unique<staged_memory_context>(LLAMA_MEMORY_STATUS_FAILED_PREPARE); };

    balloc.split_reset();

    std::vector<llama_ubatch> ubatches;
    for (auto ubatch = balloc.split_simple(n_ubatch); ubatch.n_tokens > 0; ubatch = balloc.split_simple(n_ubatch)) {
        ubatches.push_back(std::move(ubatch));
    }

    staged_memory_context::parts_t parts;

    for (int s = 0; s < n_stages; ++s) {
        auto sinfos = kv_[s]->prepare(ubatches);
        if (sinfos.empty()) {
            return failed();
        }
        parts[s] = std::make_unique<llama_kv_cache_context>(kv_[s].get(), std::move(sinfos), ubatches);
    }

    return std::make_unique<staged_memory_context>(k_, std::move(parts));
}

llama_memory_context_ptr staged_memory::init_full() {
    return std::make_unique<staged_memory_context>(k_, staged_memory_context::parts_t { kv_[0]->init_full(), kv_[1]->init_full() });
}

llama_memory_context_ptr staged_memory::init_update(llama_context * lctx, bool optimize) {
    return std::make_unique<staged_memory_context>(k_, staged_memory_context::parts_t {
        kv_[0]->init_update(lctx, optimize),
        kv_[1]->init_update(lctx, optimize),
    });
}

llama_memory_context_ptr staged_memory::init_stage(int s, std::vector<llama_ubatch> ubatches, llama_kv_cache::slot_info_vec_t & sinfos) {
    sinfos = kv_[s]->prepare(ubatches);
    if (sinfos.empty()) {
        return nullptr;
    }

    staged_memory_context::parts_t parts;
    parts[s] = std::make_unique<llama_kv_cache_context>(kv_[s].get(), sinfos, std::move(ubatches));

    return std::make_unique<staged_memory_context>(k_, std::move(parts));
}

bool staged_memory::get_can_shift() const {
    return kv_[0]->get_can_shift() && kv_[1]->get_can_shift();
}

void staged_memory::clear(bool data) {
    for (auto & kv : kv_) {
        kv->clear(data);
    }
    pending.clear();
}

bool staged_memory::seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    bool res = true;
    for (auto & kv : kv_) {
        res &= kv->seq_rm(seq_id, p0, p1);
    }
    pending.remove(begin_pos(p0), end_pos(p1));

    return res;
}

void staged_memory::seq_cp(llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) {
    // with one sequence there is nothing but itself to copy to
    for (auto & kv : kv_) {
        kv->seq_cp(seq_id_src, seq_id_dst, p0, p1);
    }
}

void staged_memory::seq_keep(llama_seq_id seq_id) {
    for (auto & kv : kv_) {
        kv->seq_keep(seq_id);
    }
}

void staged_memory::seq_add(llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) {
    for (auto & kv : kv_) {
        kv->seq_add(seq_id, p0, p1, shift);
    }
    pending.shift(begin_pos(p0), end_pos(p1), shift);
}

void staged_memory::seq_div(llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) {
    for (auto & kv : kv_) {
        kv->seq_div(seq_id, p0, p1, d);
    }
    pending.divide(begin_pos(p0), end_pos(p1), d);
}

llama_pos staged_memory::seq_pos_min(llama_seq_id seq_id) const {
    return kv_[0]->seq_pos_min(seq_id);
}

llama_pos staged_memory::seq_pos_max(llama_seq_id seq_id) const {
    return kv_[0]->seq_pos_max(seq_id);
}

std::map<ggml_backend_buffer_type_t, size_t> staged_memory::memory_breakdown() const {
    auto res = kv_[0]->memory_breakdown();
    for (const auto & [buft, size] : kv_[1]->memory_breakdown()) {
        res[buft] += size;
    }
    return res;
}

void staged_memory::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    if (!pending.empty()) {
        throw std::runtime_error(std::to_string(pending.size()) + " rows wait for the later layers: read the logits (or call pyfastv_flush) before saving the state");
    }

    io.write(state_magic, sizeof(state_magic));
    io.write(&k_, sizeof(k_));

    for (const auto & kv : kv_) {
        kv->state_write(io, seq_id, flags);
    }
}

void staged_memory::state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    char    magic[sizeof(state_magic)];
    int32_t k;

    io.read(magic, sizeof(magic));
    if (memcmp(magic, state_magic, sizeof(magic)) != 0) {
        throw std::runtime_error("this is not the state of a context with FastV stages");
    }
    io.read(&k, sizeof(k));
    if (k != k_) {
        throw std::runtime_error("this state has its stage boundary at layer " + std::to_string(k) + ", the context at layer " + std::to_string(k_));
    }

    pending.clear();
    for (auto & kv : kv_) {
        kv->state_read(io, seq_id, flags);
    }
}

size_t cell_bytes(const llama_kv_cache & kv) {
    size_t bytes = 0;
    for (const auto & [buft, size] : kv.memory_breakdown()) {
        bytes += size;
    }
    return bytes/kv.get_size();
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

staged_memory_context::staged_memory_context(int32_t k, parts_t parts) : k_(k), status(combine(parts)), parts(std::move(parts)) {}

const staged_memory_context * staged_memory_context::from(const llama_memory_context_i * mctx) {
    return dynamic_cast<const staged_memory_context *>(mctx);
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
    return (parts[0] ? parts[0] : parts[1])->get_ubatch();
}

llama_memory_status staged_memory_context::get_status() const {
    return status;
}

const llama_kv_cache_context * staged_memory_context::part(int s) const {
    return static_cast<const llama_kv_cache_context *>(parts[s].get());
}

} // namespace pyfastv
