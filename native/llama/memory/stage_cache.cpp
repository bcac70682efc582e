#include "llama/memory/stage_cache.h"

#include "llama/memory/kinds.h"
#include "llama/supported.h"

#include "llama-batch.h"
#include "llama-model.h"

#include <algorithm>

namespace pyfastv {

std::unique_ptr<stage_cache> stage_cache::make(const llama_model & model, const llama_cparams & cparams, cache_layout layout,
        int32_t il0, int32_t il1, uint32_t n_cells) {
    // as llama_model::create_memory() does for layers that only predict further tokens
    il1 = std::min<int32_t>(il1, model.hparams.n_layer());

    const part_of_model part = { model, cparams, [il0, il1](int32_t il) { return il0 <= il && il < il1; }, n_cells };

    switch (layout.kind) {
        case memory_kind::kv:     return make_kv    (part, layout);
        case memory_kind::iswa:   return make_iswa  (part, layout);
        case memory_kind::hybrid: return make_hybrid(part, layout);
    }
    return nullptr;
}

llama_ubatch stage_cache::split(llama_batch_allocr & batch, uint32_t n_ubatch, bool /*embd_all*/) const { return batch.split_simple(n_ubatch); }

void stage_cache::copy(llama_seq_id from, llama_seq_id to, llama_pos p0, llama_pos p1) { memory().seq_cp(from, to, p0, p1); }

void stage_cache::keep_only(llama_seq_id seq_id) { memory().seq_keep(seq_id); }

void stage_cache::read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    if (seq_id >= 0) {
        memory().seq_rm(seq_id, -1, -1);
    }
    memory().state_read(io, seq_id, flags);
}

cache_layout stage_cache::layout_of(const llama_memory_i & memory, const llama_model & model) {
    for (const auto layout_of_kind : { layout_of_kv, layout_of_iswa, layout_of_hybrid }) {
        if (const auto layout = layout_of_kind(memory, model)) {
            return *layout;
        }
    }
    throw unsupported("its memory is not a plain KV cache");
}

kv_bytes kv_bytes_of(const llama_memory_i & memory) {
    for (const auto bytes_of_kind : { bytes_of_kv, bytes_of_iswa, bytes_of_hybrid }) {
        if (const auto bytes = bytes_of_kind(memory)) {
            return *bytes;
        }
    }
    return {};
}

} // namespace pyfastv
