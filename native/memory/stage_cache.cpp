#include "memory/stage_cache.h"

#include "schedule/schedule.h"

#include "llama-cparams.h"
#include "llama-model.h"

#include <algorithm>
#include <stdexcept>
#include <typeinfo>
#include <utility>

namespace pyfastv {

static size_t bytes_of(const llama_kv_cache & kv) {
    size_t bytes = 0;
    for (const auto & [buft, size] : kv.memory_breakdown()) {
        bytes += size;
    }
    return bytes;
}

static size_t cell_bytes_of(const llama_kv_cache & kv) {
    return bytes_of(kv)/(kv.get_size()*kv.get_n_stream());
}

static size_t bytes_used_of(const llama_kv_cache & kv) {
    size_t used = 0;
    for (uint32_t s = 0; s < kv.get_n_stream(); ++s) {
        used += kv.get_cells(s).get_used();
    }
    return cell_bytes_of(kv)*used;
}

kv_bytes kv_bytes_of(const llama_memory_i & memory) {
    if (const auto * plain = dynamic_cast<const llama_kv_cache *>(&memory)) {
        return { bytes_of(*plain), bytes_used_of(*plain), cell_bytes_of(*plain) };
    }
    if (const auto * iswa = dynamic_cast<const llama_kv_cache_iswa *>(&memory)) {
        const auto & base = *iswa->get_base();
        const auto & swa  = *iswa->get_swa();

        return { bytes_of(base) + bytes_of(swa), bytes_used_of(base) + bytes_used_of(swa), cell_bytes_of(base) };
    }
    return {};
}

stage_cache::stage_cache(const llama_model & model, const llama_cparams & cparams, cache_layout layout, int32_t il0, int32_t il1, uint32_t n_cells) :
    n_swa((int32_t) model.hparams.n_swa), layout_(layout) {
    const auto & hparams = model.hparams;

    // as llama_model::create_memory() does for layers that only predict further tokens
    il1 = std::min<int32_t>(il1, hparams.n_layer());

    const auto filter = [il0, il1](int32_t il) { return il0 <= il && il < il1; };

    if (hparams.swa_type == LLAMA_SWA_TYPE_NONE) {
        auto kv = std::make_unique<llama_kv_cache>(
                model, hparams, layout.type_k, layout.type_v,
                !cparams.flash_attn, cparams.offload_kqv, cparams.kv_unified,
                n_cells, cparams.n_seq_max, 1, hparams.n_swa, hparams.swa_type, nullptr,
                filter, nullptr, nullptr);
        plain   = kv.get();
        memory_ = std::move(kv);
    } else {
        auto kv = std::make_unique<llama_kv_cache_iswa>(
                model, layout.type_k, layout.type_v,
                !cparams.flash_attn, cparams.offload_kqv, layout.swa_full, cparams.kv_unified,
                n_cells, cparams.n_seq_max, cparams.n_ubatch, 1, nullptr,
                filter, nullptr, nullptr);
        iswa    = kv.get();
        memory_ = std::move(kv);
    }
}

cache_layout stage_cache::layout_of(const llama_memory_i & memory) {
    if (typeid(memory) == typeid(llama_kv_cache)) {
        const auto & kv = static_cast<const llama_kv_cache &>(memory);
        return { kv.type_k(), kv.type_v(), false };
    }
    if (typeid(memory) == typeid(llama_kv_cache_iswa)) {
        const auto & iswa = static_cast<const llama_kv_cache_iswa &>(memory);
        const auto & base = *iswa.get_base();
        const auto & swa  = *iswa.get_swa();
        const auto & kv   = base.get_layer_ids().empty() ? swa : base;
        return { kv.type_k(), kv.type_v(), swa.get_size() == base.get_size() };
    }
    throw unsupported("its memory is not a plain KV cache");
}

const llama_kv_cache & stage_cache::base() const {
    return iswa ? *iswa->get_base() : *plain;
}

bool stage_cache::forgets() const {
    return iswa && iswa->get_swa()->get_size() < iswa->get_base()->get_size();
}

llama_pos stage_cache::window_from(llama_seq_id seq_id) const {
    if (!iswa || iswa->get_swa()->get_layer_ids().empty()) {
        return 0;
    }
    const auto & all    = iswa->get_base()->get_cells(seq_id).seq_pos_get(seq_id);
    const auto & inside = iswa->get_swa ()->get_cells(seq_id).seq_pos_get(seq_id);

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

llama_memory_context_ptr stage_cache::prepare(const std::vector<llama_ubatch> & ubatches) {
    if (plain) {
        auto sinfos = plain->prepare(ubatches);
        if (sinfos.empty()) {
            return nullptr;
        }
        return std::make_unique<llama_kv_cache_context>(plain, std::move(sinfos), ubatches);
    }

    auto sinfos_base = iswa->get_base()->prepare(ubatches);
    auto sinfos_swa  = iswa->get_swa ()->prepare(ubatches);
    if (sinfos_base.empty() || sinfos_swa.empty()) {
        return nullptr;
    }
    return std::make_unique<llama_kv_cache_iswa_context>(iswa, std::move(sinfos_base), std::move(sinfos_swa), ubatches);
}

static position key_of_cell(const llama_kv_cells & cells, uint32_t cell, bool with_ext) {
    const auto pos = cells.pos_get(cell);
    if (!with_ext) {
        return { pos };
    }
    const auto & ext = cells.ext_get(cell);
    return { pos, ext.y, ext.x };
}

static stage_cache::cells cells_in(const llama_kv_cache & kv, llama_seq_id seq_id) {
    const bool   ext    = kv.has_cell_ext();
    const auto & source = kv.get_cells(seq_id);

    stage_cache::cells res;
    for (const auto & [pos, cell] : source.seq_pos_get(seq_id)) {
        res.emplace(key_of_cell(source, cell, ext), cell);
    }
    return res;
}

stage_cache::cells stage_cache::cells_of(llama_seq_id seq_id) const {
    return cells_in(base(), seq_id);
}

stage_cache::cells stage_cache::cells_of_windows(llama_seq_id seq_id) const {
    return iswa ? cells_in(*iswa->get_swa(), seq_id) : cells {};
}

template <typename F>
void stage_cache::for_each_cache(F && f) const {
    if (plain) {
        f(*plain);
    } else {
        f(*iswa->get_base());
        f(*iswa->get_swa());
    }
}

void stage_cache::remove(llama_seq_id seq_id, const position & pos) {
    for_each_cache([&](llama_kv_cache & kv) {
        if (!kv.has_cell_ext()) {
            kv.seq_rm(seq_id, pos[0], pos[0] + 1); // and the next token is looked for a cell from there on
            return;
        }
        // The cache removes by position in time, which all tokens of a picture share under M-RoPE.
        auto & cells = const_cast<llama_kv_cells &>(kv.get_cells(seq_id));

        for (const auto & [p, cell] : cells.seq_pos_get(seq_id)) {
            if (p == pos[0] && key_of_cell(cells, cell, kv.has_cell_ext()) == cell_key(pos)) {
                cells.seq_rm(cell, seq_id);
                return;
            }
        }
    });
}

void stage_cache::check_cells() const {
    const auto require = [](bool fact) {
        if (!fact) {
            throw std::runtime_error("this state is broken: its cells do not fit together");
        }
    };

    for_each_cache([&](const llama_kv_cache & kv) {
        const auto & cells = kv.get_cells(0);

        uint32_t n_used = 0;
        for (uint32_t i = 0; i < cells.size(); ++i) {
            const auto & ids = cells.seq_get_all(i);
            require(cells.is_empty(i) ? ids.none() : ids.any() && is_possible(cells.pos_get(i)));
            n_used += !cells.is_empty(i);
        }
        require(n_used == cells.get_used());
    });

    const auto earlier = [](const auto & a, const auto & b) { return a.first < b.first; };

    for (llama_seq_id id = 0; iswa && id < (llama_seq_id) base().get_n_seq_max(); ++id) {
        const auto & all    = iswa->get_base()->get_cells(id).seq_pos_get(id);
        const auto & inside = iswa->get_swa ()->get_cells(id).seq_pos_get(id);
        require(std::includes(all.begin(), all.end(), inside.begin(), inside.end(), earlier));
    }
}

void stage_cache::drop(llama_seq_id seq_id) {
    for_each_cache([&](llama_kv_cache & kv) {
        kv.state_clear(seq_id);

        // what is at a negative position is not found by it
        auto & cells = const_cast<llama_kv_cells &>(kv.get_cells(seq_id));
        while (!cells.seq_pos_get(seq_id).empty()) {
            cells.seq_rm(cells.seq_pos_get(seq_id).begin()->second, seq_id);
        }
    });
}

} // namespace pyfastv
