// the memory of a stage: llama_kv_cache

#include "llama/memory/cells.h"
#include "llama/memory/kinds.h"

#include "llama-cparams.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

#include <typeinfo>
#include <utility>

namespace pyfastv {
namespace {

class kv_memory : public stage_cache {
public:
    kv_memory(const part_of_model & part, const cache_layout & layout) :
        layout_(layout),
        kv(std::make_unique<llama_kv_cache>(
                part.model, part.model.hparams, layout.type_k, layout.type_v,
                !part.cparams.flash_attn, part.cparams.offload_kqv, part.cparams.kv_unified,
                part.n_cells, part.cparams.n_seq_max, 1, part.model.hparams.n_swa, part.model.hparams.swa_type, nullptr,
                part.has_layer, nullptr, nullptr)) {}

    cache_layout layout() const override { return layout_; }

    llama_memory_i & memory() const override { return *kv; }

    std::unique_ptr<llama_memory_i> release() override { return std::move(kv); }

    llama_memory_context_ptr prepare(const std::vector<llama_ubatch> & ubatches) override {
        auto slots = kv->prepare(ubatches);
        if (slots.empty()) {
            return nullptr;
        }
        return std::make_unique<llama_kv_cache_context>(kv.get(), std::move(slots), ubatches);
    }

    uint32_t n_cells()      const override { return kv->get_size(); }
    uint32_t n_cells_used() const override { return kv->get_cells(0).get_used(); }
    uint32_t n_seq_max()    const override { return kv->get_n_seq_max(); }
    kv_bytes bytes()        const override { return bytes_in(*kv); }

    cells cells_of(llama_seq_id seq_id)           const override { return cells_in(*kv, seq_id); }
    cells cells_of_windows(llama_seq_id /*seq_id*/) const override { return {}; }

    std::vector<llama_pos> positions(size_t n) const override { return positions_in(*kv, n); }

    llama_pos first_position(llama_seq_id seq_id) const override { return kv->seq_pos_min(seq_id); }

    int32_t   forgets_after()                        const override { return 0; }
    bool      can_recall()                           const override { return true; }
    llama_pos removable_from(llama_seq_id /*seq_id*/) const override { return 0; }

    void remove(llama_seq_id seq_id, const position & pos) override { remove_in(*kv, seq_id, pos); }

    void check_cells() const override { check_cells_in(*kv); }

    void drop(llama_seq_id seq_id) override { drop_in(*kv, seq_id); }

private:
    const cache_layout layout_;

    std::unique_ptr<llama_kv_cache> kv;
};

} // namespace

std::unique_ptr<stage_cache> make_kv(const part_of_model & part, const cache_layout & layout) {
    return std::make_unique<kv_memory>(part, layout);
}

std::optional<cache_layout> layout_of_kv(const llama_memory_i & memory, const llama_model & model) {
    if (typeid(memory) != typeid(llama_kv_cache)) {
        return std::nullopt;
    }
    const auto & kv = static_cast<const llama_kv_cache &>(memory);
    const auto type_k = kv.type_k();

    // latent keys are their own values
    return cache_layout { memory_kind::kv, type_k, model.hparams.is_mla() ? type_k : kv.type_v(), false };
}

std::optional<kv_bytes> bytes_of_kv(const llama_memory_i & memory) {
    const auto * kv = dynamic_cast<const llama_kv_cache *>(&memory);
    return kv ? std::optional(bytes_in(*kv)) : std::nullopt;
}

} // namespace pyfastv
