// the memory of a stage: llama_memory_hybrid, a cache for layers with attention ("attn"), and for recurrent ones a state of each
// sequence ("recr"); and what their graphs read of it

#include "llama/memory/cells.h"
#include "llama/memory/kinds.h"
#include "llama/staged_input.h"

#include "llama-batch.h"
#include "llama-cparams.h"
#include "llama-graph.h"
#include "llama-io.h"
#include "llama-memory-hybrid.h"
#include "llama-memory-recurrent.h"
#include "llama-model.h"

#include "ggml-backend.h"
#include "ggml.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <set>
#include <typeinfo>
#include <utility>
#include <vector>

namespace pyfastv {
namespace {

kv_bytes bytes_of(const llama_memory_hybrid & hybrid) {
    const auto & recr = *hybrid.get_mem_recr();

    auto res = bytes_in(*hybrid.get_mem_attn());
    for (const auto & [buft, size] : recr.memory_breakdown()) {
        res.allocated += size;
        res.used      += size/recr.size*recr.used;
    }
    return res;
}

// What comes first in saved states is how many there are.
class counted_states : public llama_io_read_i {
public:
    counted_states(llama_io_read_i & io, uint32_t most) : io(io), most(most) {}

    void read(void * to, size_t size) override {
        io.read(to, size);
        if (!counted) {
            uint32_t n = 0;
            memcpy(&n, to, std::min(size, sizeof(n)));
            require_cells(n <= most);
            counted = true;
        }
    }

    void read_tensor(ggml_tensor * tensor, size_t offset, size_t size) override { io.read_tensor(tensor, offset, size); }

    void discard() override { io.discard(); }

    size_t n_bytes() override { return io.n_bytes(); }

private:
    llama_io_read_i & io;
    const uint32_t    most;

    bool counted = false;
};

class hybrid_memory : public stage_cache {
public:
    hybrid_memory(const part_of_model & part, const cache_layout & layout) :
        layout_(layout),
        hybrid(std::make_unique<llama_memory_hybrid>(
                part.model, layout.type_k, layout.type_v,
                !part.cparams.flash_attn, part.n_cells, 1, part.model.hparams.n_swa, part.model.hparams.swa_type,
                GGML_TYPE_F32, GGML_TYPE_F32, std::max<uint32_t>(1, part.cparams.n_seq_max),
                part.cparams.n_seq_max, part.cparams.n_rs_seq, part.cparams.offload_kqv, part.cparams.kv_unified,
                [&part](int32_t il) { return part.has_layer(il) && !part.model.hparams.is_recr(il); },
                [&part](int32_t il) { return part.has_layer(il) &&  part.model.hparams.is_recr(il); })),
        behind(recr().size) {
        for (auto & rows : behind) {
            rows.reserve(1 + recr().n_rs_seq);
        }
    }

    cache_layout layout() const override { return layout_; }

    llama_memory_i & memory() const override { return *hybrid; }

    std::unique_ptr<llama_memory_i> release() override { return std::move(hybrid); }

    // as llama_memory_hybrid::init_batch()
    llama_ubatch split(llama_batch_allocr & batch, uint32_t n_ubatch, bool embd_all) const override {
        if (embd_all) {
            return batch.split_seq(n_ubatch);
        }
        return batch.split_equal(n_ubatch, attn().get_n_stream() > 1, recr().n_rs_seq > 0 ? recr().n_rs_seq + 1 : 0);
    }

    llama_memory_context_ptr prepare(const std::vector<llama_ubatch> & ubatches) override {
        if (!recr().prepare(ubatches)) {
            return nullptr;
        }
        auto slots = attn().prepare(ubatches);
        if (slots.empty()) {
            return nullptr;
        }
        return std::make_unique<noting_context>(*this, std::move(slots), ubatches);
    }

    uint32_t n_cells()      const override { return attn().get_size(); }
    uint32_t n_cells_used() const override { return attn().get_cells(0).get_used(); }
    uint32_t n_seq_max()    const override { return attn().get_n_seq_max(); }
    kv_bytes bytes()        const override { return bytes_of(*hybrid); }

    cells cells_of(llama_seq_id seq_id)             const override { return cells_in(attn(), seq_id); }
    cells cells_of_windows(llama_seq_id /*seq_id*/) const override { return {}; }

    std::vector<llama_pos> positions(size_t n) const override { return positions_in(attn(), n); }

    // a state is of all from the beginning on
    llama_pos first_position(llama_seq_id seq_id) const override { return recr().seq_pos_max(seq_id) < 0 ? -1 : 0; }

    int32_t forgets_after() const override { return 0; }
    bool    can_recall()    const override { return true; }

    // As llama_memory_recurrent::seq_rm(), which takes positions for rows: those of a picture may have one together, and some are
    // not in this stage. It also takes for granted that states were kept behind as many rows as there is room for, and that these
    // are where they were.
    llama_pos removable_from(llama_seq_id seq_id) const override {
        const auto * state = cell_of(seq_id);
        if (!state) {
            return 0;
        }
        const bool goes_back = state->seq_id.size() == 1 && recr().rs_idx[seq_id] == 0;
        const auto & rows    = behind[recr().cells[seq_id].tail];
        const auto & tokens  = attn().get_cells(seq_id).seq_pos_get(seq_id);

        llama_pos res = state->pos + 1;
        auto      it  = tokens.rbegin();
        for (size_t n = 1; goes_back && n < rows.size() && it != tokens.rend() && it->first == res - 1; ++n) {
            const auto before = std::next(it);
            if (it->first != rows[n - 1] || (before != tokens.rend() && before->first == it->first)) {
                break;
            }
            res = it->first;
            it  = before;
        }
        return res;
    }

    void remove(llama_seq_id seq_id, const position & pos) override { remove_in(attn(), seq_id, pos); }

    bool is_recurrent() const override { return true; }

    states states_of(llama_seq_id seq_id) const override {
        states res;
        if (const auto * state = cell_of(seq_id)) {
            const auto cell = (uint32_t) (state->src >= 0 ? state->src : recr().cells[seq_id].tail);

            res.pos    = state->pos;
            res.back   = recr().rs_idx[seq_id];
            res.behind = behind[recr().cells[seq_id].tail];

            size_t n = 0;
            for_each_row(cell, [&](ggml_tensor *, size_t, size_t size) { n += size; });
            res.bytes.resize(n);

            auto * to = res.bytes.data();
            for_each_row(cell, [&](ggml_tensor * rows, size_t offset, size_t size) {
                ggml_backend_tensor_get(rows, to, offset, size);
                to += size;
            });
        }
        return res;
    }

    void put_back(llama_seq_id seq_id, const states & before) override {
        auto & cells = recr().cells;

        auto id = leave(seq_id);
        if (before.pos < 0) {
            return;
        }
        // there are as many cells as sequences
        const auto place = std::find_if(cells.begin(), cells.end(), [](const auto & cell) { return cell.is_empty(); });
        const auto cell = (int32_t) (place - cells.begin());

        if (id.empty()) {
            place->seq_id.insert(seq_id);
        } else {
            place->seq_id.insert(std::move(id));
        }
        place->pos = before.pos;
        place->src = cell;
        cells[seq_id].tail    = cell;
        recr().rs_idx[seq_id] = before.back;
        behind[cell]          = before.behind; // for which there is memory
        recr().used++;

        const auto * from = before.bytes.data();
        for_each_row(cell, [&](ggml_tensor * rows, size_t offset, size_t size) {
            ggml_backend_tensor_set(rows, from, offset, size);
            from += size;
        });
    }

    void check_cells() const override {
        check_cells_in(attn());

        const auto & cells = recr().cells;
        for (const auto & cell : cells) {
            require_cells(cell.is_empty() || is_possible(cell.pos));
        }
        const auto n_used = std::count_if(cells.begin(), cells.end(), [](const auto & cell) { return !cell.is_empty(); });
        require_cells(n_used == (ptrdiff_t) recr().used);
    }

    void drop(llama_seq_id seq_id) override {
        drop_in(attn(), seq_id);

        // a state begins as that of a free cell times 0, which may not be NaN
        if (const auto * state = cell_of(seq_id); state && state->seq_id.size() == 1) {
            for_each_row((uint32_t) recr().cells[seq_id].tail, [](ggml_tensor * rows, size_t offset, size_t size) {
                ggml_backend_tensor_memset(rows, 0, offset, size);
            });
        }
        leave(seq_id);
    }

    // Who shares a state must have it as it is.
    void copy(llama_seq_id from, llama_seq_id to, llama_pos p0, llama_pos p1) override {
        attn().seq_cp(from, to, p0, p1);
        go_back(from);
        recr().rs_idx[to] = 0;
        recr().seq_cp(from, to, p0, p1);
    }

    void keep_only(llama_seq_id seq_id) override {
        hybrid->seq_keep(seq_id);
        for (llama_seq_id id = 0; id < (llama_seq_id) n_seq_max(); ++id) {
            recr().rs_idx[id] = id == seq_id ? recr().rs_idx[id] : 0;
        }
    }

    // As llama_memory_hybrid::state_read(), but for what llama.cpp aborts at. States behind earlier rows are not in it.
    void read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) override {
        if (!(flags & LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY)) {
            if (seq_id >= 0) {
                attn().seq_rm(seq_id, -1, -1);
            }
            attn().state_read(io, seq_id, flags);
        }
        counted_states counted(io, seq_id < 0 ? recr().size : 1);
        recr().state_read(counted, seq_id, flags);

        for (uint32_t cell = 0; cell < recr().size; ++cell) {
            if (seq_id < 0 || recr().cells[cell].has_seq_id(seq_id)) {
                behind[cell].clear();
            }
        }
    }

private:
    using slots_t = llama_memory_hybrid_context::slot_info_vec_t;

    // Of the ubatches that run it notes behind which rows there is a state then.
    class noting_context final : public llama_memory_hybrid_context {
    public:
        noting_context(hybrid_memory & memory, slots_t slots, const std::vector<llama_ubatch> & ubatches) :
            llama_memory_hybrid_context(memory.hybrid.get(), std::move(slots), ubatches), memory(memory) {}

        bool apply() override {
            const bool res = llama_memory_hybrid_context::apply();
            memory.note_rows(get_ubatch());
            return res;
        }

    private:
        hybrid_memory & memory;
    };

    // Where a ubatch runs now: it leaves a state behind each of the last rows that it has of a sequence. The cells between those
    // of its sequences may have been moved, their last states alone.
    void note_rows(const llama_ubatch & ubatch) {
        for (uint32_t cell = recr().head; cell < recr().head + recr().n; ++cell) {
            behind[cell].clear();
        }
        for (uint32_t s = 0; s < ubatch.n_seqs; ++s) {
            const uint32_t end = (s + 1)*ubatch.n_seq_tokens;

            auto & rows = behind[recr().cells[ubatch.seq_id[end - 1][0]].tail];
            for (uint32_t n = 0; n < std::min(ubatch.n_seq_tokens, 1 + recr().n_rs_seq); ++n) {
                rows.push_back(ubatch.pos[end - 1 - n]);
            }
        }
    }

    // What llama.cpp does with the next rows of a sequence: the state behind its last row becomes the first one.
    void go_back(llama_seq_id seq_id) {
        const auto * state = cell_of(seq_id);
        const auto   back  = state ? recr().rs_idx[seq_id] : 0;
        if (back == 0) {
            return;
        }
        const auto cell = (uint32_t) (state->src >= 0 ? state->src : recr().cells[seq_id].tail);

        std::vector<uint8_t> row;
        for_each_layer([&](ggml_tensor * rows) {
            row.resize(rows->nb[1]);
            ggml_backend_tensor_get(rows, row.data(), (back*recr().size + cell)*rows->nb[1], row.size());
            ggml_backend_tensor_set(rows, row.data(), cell*rows->nb[1], row.size());
        });
        recr().rs_idx[seq_id] = 0;
        behind[recr().cells[seq_id].tail].clear();
    }

    llama_kv_cache &         attn() const { return *hybrid->get_mem_attn(); }
    llama_memory_recurrent & recr() const { return *hybrid->get_mem_recr(); }

    // null: it has no state
    llama_memory_recurrent::mem_cell * cell_of(llama_seq_id seq_id) const {
        const int32_t tail = seq_id < (llama_seq_id) recr().size ? recr().cells[seq_id].tail : -1;
        return tail < 0 ? nullptr : &recr().cells[tail];
    }

    // f(tensor), whose rows are the states of the cells; those of snapshots come behind
    template <typename F>
    void for_each_layer(F && f) const {
        for (const auto * layers : { &recr().r_l, &recr().s_l, &recr().p_l }) {
            for (ggml_tensor * rows : *layers) {
                if (rows && rows->ne[0] > 0) {
                    f(rows);
                }
            }
        }
    }

    // f(tensor, offset, bytes) of every layer's rows of a cell, those of snapshots included
    template <typename F>
    void for_each_row(uint32_t cell, F && f) const {
        for_each_layer([&](ggml_tensor * rows) {
            for (uint32_t n = 0; n <= recr().n_rs_seq; ++n) {
                f(rows, (n*recr().size + cell)*rows->nb[1], rows->nb[1]);
            }
        });
    }

    // The sequence has no state any more. Its number, for another cell
    std::set<llama_seq_id>::node_type leave(llama_seq_id seq_id) {
        auto * cell = cell_of(seq_id);
        if (!cell) {
            return {};
        }
        auto res = cell->seq_id.extract(seq_id);
        if (cell->is_empty()) {
            cell->pos = -1;
            cell->src = -1;
            recr().used--;
        }
        recr().cells[seq_id].tail = -1;
        recr().rs_idx[seq_id]     = 0;
        return res;
    }

    const cache_layout layout_;

    std::unique_ptr<llama_memory_hybrid> hybrid;

    std::vector<std::vector<llama_pos>> behind; // [cell] positions of the rows behind which there is a state, the last one first
};

} // namespace

//
// graphs
//

static void add_weights(llm_graph_input_mem_hybrid & input, const staged_memory::weights_of_sequences & weights,
        const llama_ubatch & ubatch) {
    add_weights(*input.inp_attn, weights, ubatch); // in a state nothing can be told apart
}

namespace {

class graph_input_hybrid final : public graph_input_staged<llm_graph_input_mem_hybrid>, public input_by_layer {
public:
    graph_input_hybrid(const llm_graph_context & graph, const staged_memory_context & mctx, parts_t parts_) :
        graph_input_staged(mctx, std::move(parts_), graph.cparams, nullptr, nullptr, nullptr), idle(parts.size()) {
        for (size_t s = 0; s < parts.size(); ++s) {
            if (parts[s]) {
                allocate(graph, *parts[s]);
                continue;
            }
            // recurrent layers in front of the stage are built before the graph is emptied, of tensors that are there
            contexts.push_back(mctx.stages().cache((int) s).memory().init_full());
            const auto & full = static_cast<const llama_memory_hybrid_context &>(*contexts.back());

            idle[s] = std::make_unique<llm_graph_input_mem_hybrid>(graph.cparams, nullptr,
                    build_part(graph, *full.get_recr(), &llm_graph_context::build_rs_inp), nullptr);
        }
        go_to(0);
    }

    void go_to(int il) override {
        hand_back();

        const int s = mctx->stage_of(il);
        lender   = parts[s] ? parts[s].get() : idle[s].get();
        inp_attn = std::move(lender->inp_attn);
        inp_rs   = std::move(lender->inp_rs);
    }

    void set_input(const llama_ubatch * ubatch) override {
        hand_back();
        graph_input_staged::set_input(ubatch);
    }

    bool can_reuse(const llm_graph_params & params) override {
        hand_back();
        return graph_input_staged::can_reuse(params);
    }

private:
    // A stage may have no layers of one of the kinds; what they would read is filled nevertheless.
    static void allocate(const llm_graph_context & graph, const llm_graph_input_mem_hybrid & part) {
        const auto & attn = *part.inp_attn;
        const auto & recr = *part.inp_rs;
        for (ggml_tensor * t : { recr.s_copy,
                attn.self_k_idxs, attn.self_v_idxs, attn.self_kq_mask, attn.self_k_rot, attn.self_v_rot }) {
            if (t) {
                ggml_build_forward_expand(graph.gf, t);
            }
        }
    }

    void hand_back() {
        if (lender) {
            lender->inp_attn = std::move(inp_attn);
            lender->inp_rs   = std::move(inp_rs);
            lender = nullptr;
        }
    }

    parts_t                               idle; // of stages that do not run
    std::vector<llama_memory_context_ptr> contexts;

    llm_graph_input_mem_hybrid * lender = nullptr; // whose inputs are here meanwhile
};

} // namespace

template <>
llm_graph_input_mem_hybrid * staged_input(const llm_graph_context & graph, llm_graph_input_mem_hybrid * (llm_graph_context::*build)() const) {
    const auto * mctx = staged_memory_context::from(graph.mctx);
    if (!mctx) {
        return nullptr;
    }
    return static_cast<llm_graph_input_mem_hybrid *>(graph.res->add_input(std::make_unique<graph_input_hybrid>(
            graph, *mctx, build_parts(graph, *mctx, build))));
}

//
// the kind
//

std::unique_ptr<stage_cache> make_hybrid(const part_of_model & part, const cache_layout & layout) {
    return std::make_unique<hybrid_memory>(part, layout);
}

std::optional<cache_layout> layout_of_hybrid(const llama_memory_i & memory, const llama_model & /*model*/) {
    if (typeid(memory) != typeid(llama_memory_hybrid)) {
        return std::nullopt;
    }
    const auto & attn = *static_cast<const llama_memory_hybrid &>(memory).get_mem_attn();
    if (attn.get_layer_ids().empty()) {
        return std::nullopt; // nothing gives scores
    }
    return cache_layout { memory_kind::hybrid, attn.type_k(), attn.type_v(), false };
}

std::optional<kv_bytes> bytes_of_hybrid(const llama_memory_i & memory) {
    const auto * hybrid = dynamic_cast<const llama_memory_hybrid *>(&memory);
    return hybrid ? std::optional(bytes_of(*hybrid)) : std::nullopt;
}

} // namespace pyfastv
