#include "llama/memory/cells.h"

#include <stdexcept>

namespace pyfastv {

kv_bytes bytes_in(const llama_kv_cache & kv) {
    kv_bytes res;
    for (const auto & [buft, size] : kv.memory_breakdown()) {
        res.allocated += size;
    }
    res.cell = res.allocated/(kv.get_size()*kv.get_n_stream());

    for (uint32_t s = 0; s < kv.get_n_stream(); ++s) {
        res.used += res.cell*kv.get_cells(s).get_used();
    }
    return res;
}

static position key_of_cell(const llama_kv_cells & cells, uint32_t cell, bool with_ext) {
    const auto pos = cells.pos_get(cell);
    if (!with_ext) {
        return { pos };
    }
    const auto & ext = cells.ext_get(cell);
    return { pos, ext.y, ext.x };
}

stage_cache::cells cells_in(const llama_kv_cache & kv, llama_seq_id seq_id) {
    const bool   ext    = kv.has_cell_ext();
    const auto & source = kv.get_cells(seq_id);

    stage_cache::cells res;
    for (const auto & [pos, cell] : source.seq_pos_get(seq_id)) {
        res.emplace(key_of_cell(source, cell, ext), cell);
    }
    return res;
}

std::vector<llama_pos> positions_in(const llama_kv_cache & kv, size_t n) {
    const auto & cells = kv.get_cells(0);

    std::vector<llama_pos> res(n);
    for (size_t i = 0; i < n; ++i) {
        res[i] = cells.is_empty(i) ? 0 : cells.pos_get(i);
    }
    return res;
}

void remove_in(llama_kv_cache & kv, llama_seq_id seq_id, const position & pos) {
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
}

void require_cells(bool fact) {
    if (!fact) {
        throw std::runtime_error("this state is broken: its cells do not fit together");
    }
}

void check_cells_in(const llama_kv_cache & kv) {
    const auto & cells = kv.get_cells(0);

    uint32_t n_used = 0;
    for (uint32_t i = 0; i < cells.size(); ++i) {
        const auto & ids = cells.seq_get_all(i);
        require_cells(cells.is_empty(i) ? ids.none() : ids.any() && is_possible(cells.pos_get(i)));
        n_used += !cells.is_empty(i);
    }
    require_cells(n_used == cells.get_used());
}

void drop_in(llama_kv_cache & kv, llama_seq_id seq_id) {
    kv.state_clear(seq_id);

    // what is at a negative position is not found by it
    auto & cells = const_cast<llama_kv_cells &>(kv.get_cells(seq_id));
    while (!cells.seq_pos_get(seq_id).empty()) {
        cells.seq_rm(cells.seq_pos_get(seq_id).begin()->second, seq_id);
    }
}

} // namespace pyfastv
