// the memory of a stage: llama_kv_cache_iswa, a cache for layers that see everything ("base"), and one for those with sliding
// windows ("swa")

#include "llama/memory/cells.h"
#include "llama/memory/kinds.h"

#include "llama-cparams.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

#include <algorithm>
#include <typeinfo>
#include <utility>

namespace pyfastv {
namespace {

// As llama_model::create_memory() does it: layers without keys and values of their own read those of the last two that have some,
// which unsupported_layer() keeps in their stage.
llama_memory_i::layer_reuse_cb reuse_of(const llama_hparams & hparams) {
    const int32_t n_own = hparams.n_layer_kv_from_start; // -1: all have

    return [&hparams, n_own](int32_t il) { return n_own < 2 || il < n_own ? -1 : n_own - (hparams.is_swa(il) ? 2 : 1); };
}

kv_bytes bytes_of(const llama_kv_cache_iswa & iswa) {
    const auto base = bytes_in(*iswa.get_base());
    const auto swa  = bytes_in(*iswa.get_swa());

    return { base.allocated + swa.allocated, base.used + swa.used, base.cell };
}

class iswa_memory : public stage_cache {
public:
    iswa_memory(const part_of_model & part, const cache_layout & layout) :
        n_swa((int32_t) part.model.hparams.n_swa), layout_(layout),
        iswa(std::make_unique<llama_kv_cache_iswa>(
                part.model, layout.type_k, layout.type_v,
                !part.cparams.flash_attn, part.cparams.offload_kqv, layout.swa_full, part.cparams.kv_unified,
                part.n_cells, part.cparams.n_seq_max, part.cparams.n_ubatch, 1, nullptr,
                part.has_layer, reuse_of(part.model.hparams), nullptr)) {}

    cache_layout layout() const override { return layout_; }

    llama_memory_i & memory() const override { return *iswa; }

    std::unique_ptr<llama_memory_i> release() override { return std::move(iswa); }

    llama_memory_context_ptr prepare(const std::vector<llama_ubatch> & ubatches) override {
        auto slots_base = base().prepare(ubatches);
        auto slots_swa  = swa ().prepare(ubatches);
        if (slots_base.empty() || slots_swa.empty()) {
            return nullptr;
        }
        return std::make_unique<llama_kv_cache_iswa_context>(iswa.get(), std::move(slots_base), std::move(slots_swa), ubatches);
    }

    uint32_t n_cells()      const override { return base().get_size(); }
    uint32_t n_cells_used() const override { return base().get_cells(0).get_used(); }
    uint32_t n_seq_max()    const override { return base().get_n_seq_max(); }
    kv_bytes bytes()        const override { return bytes_of(*iswa); }

    cells cells_of(llama_seq_id seq_id)         const override { return cells_in(base(), seq_id); }
    cells cells_of_windows(llama_seq_id seq_id) const override { return cells_in(swa(), seq_id); }

    std::vector<llama_pos> positions(size_t n) const override { return positions_in(base(), n); }

    llama_pos first_position(llama_seq_id seq_id) const override { return base().seq_pos_min(seq_id); }

    int32_t forgets_after() const override { return swa().get_size() < base().get_size() ? n_swa : 0; }

    // what a sliding window has forgotten cannot be seen by a row that comes back
    bool can_recall() const override { return forgets_after() == 0; }

    // A saved sequence has its last windows only, whatever this cache forgets.
    llama_pos removable_from(llama_seq_id seq_id) const override {
        if (swa().get_layer_ids().empty()) {
            return 0;
        }
        const auto & all    = base().get_cells(seq_id).seq_pos_get(seq_id);
        const auto & inside = swa ().get_cells(seq_id).seq_pos_get(seq_id);

        // what is in a window is in the other cache, too
        if (all.size() == inside.size()) {
            return 0;
        }
        auto a = all.rbegin();
        for (auto b = inside.rbegin(); a != all.rend() && b != inside.rend() && a->first == b->first; ++b) {
            ++a;
        }
        return a == all.rend() ? 0 : a->first + n_swa; // a is the last that was forgotten
    }

    void remove(llama_seq_id seq_id, const position & pos) override {
        remove_in(base(), seq_id, pos);
        remove_in(swa (), seq_id, pos);
    }

    // as llama_kv_cache_iswa::state_read(), of caches without the sequence
    void read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) override {
        const bool all = !(flags & LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY);
        if (seq_id >= 0) {
            swa().seq_rm(seq_id, -1, -1);
        }
        if (seq_id >= 0 && all) {
            base().seq_rm(seq_id, -1, -1);
        }
        iswa->state_read(io, seq_id, flags);
    }

    void check_cells() const override {
        check_cells_in(base());
        check_cells_in(swa());

        const auto earlier = [](const auto & a, const auto & b) { return a.first < b.first; };

        for (llama_seq_id id = 0; id < (llama_seq_id) n_seq_max(); ++id) {
            const auto & all    = base().get_cells(id).seq_pos_get(id);
            const auto & inside = swa ().get_cells(id).seq_pos_get(id);
            require_cells(std::includes(all.begin(), all.end(), inside.begin(), inside.end(), earlier));
        }
    }

    void drop(llama_seq_id seq_id) override {
        drop_in(base(), seq_id);
        drop_in(swa (), seq_id);
    }

private:
    llama_kv_cache & base() const { return *iswa->get_base(); }
    llama_kv_cache & swa () const { return *iswa->get_swa(); }

    const int32_t      n_swa;
    const cache_layout layout_;

    std::unique_ptr<llama_kv_cache_iswa> iswa;
};

} // namespace

std::unique_ptr<stage_cache> make_iswa(const part_of_model & part, const cache_layout & layout) {
    return std::make_unique<iswa_memory>(part, layout);
}

std::optional<cache_layout> layout_of_iswa(const llama_memory_i & memory, const llama_model & /*model*/) {
    if (typeid(memory) != typeid(llama_kv_cache_iswa)) {
        return std::nullopt;
    }
    const auto & iswa = static_cast<const llama_kv_cache_iswa &>(memory);
    const auto & base = *iswa.get_base();
    const auto & swa  = *iswa.get_swa();
    const auto & kv   = base.get_layer_ids().empty() ? swa : base;

    return cache_layout { memory_kind::iswa, kv.type_k(), kv.type_v(), swa.get_size() == base.get_size() };
}

std::optional<kv_bytes> bytes_of_iswa(const llama_memory_i & memory) {
    const auto * iswa = dynamic_cast<const llama_kv_cache_iswa *>(&memory);
    return iswa ? std::optional(bytes_of(*iswa)) : std::nullopt;
}

} // namespace pyfastv
