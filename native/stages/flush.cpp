// staged_decode: the later layers

#include "stages/caught.h"
#include "stages/flight.h"
#include "stages/scopes.h"
#include "llama/stage_output.h"
#include "stages/staged_decode.h"

#include "choose/parts.h"
#include "products/products.h"
#include "settings/rules.h"

#include "llama/interfaces.h"
#include "llama/ubatch.h"

#include "ggml.h"

#include <algorithm>
#include <map>
#include <new>
#include <utility>

namespace pyfastv {

static pyfastv_status to_status(ggml_status status) {
    switch (status) {
        case GGML_STATUS_SUCCESS:      return PYFASTV_OK;
        case GGML_STATUS_ABORTED:      return PYFASTV_ABORTED;
        case GGML_STATUS_ALLOC_FAILED: return PYFASTV_OUT_OF_MEMORY;
        case GGML_STATUS_FAILED:       return PYFASTV_FAILED;
    }
    return PYFASTV_FAILED;
}

void staged_decode::flush_if_read() noexcept {
    if (n_outputs == 0) {
        return;
    }
    try {
        if (flush_read() == PYFASTV_OK) {
            return;
        }
    } catch (...) {
        status_of_exception(__func__);
    }
    // stock's readers return null for outputs that are not there
    LLAMA_LOG_ERROR("%s: the later layers could not be run; the outputs of this batch cannot be read\n", __func__);
    ctx.spoil_logits();
}

pyfastv_status staged_decode::flush_read() {
    // a sequence whose outputs were not asked for may not have been asked its question yet
    std::vector<llama_seq_id> seq_ids;
    for (const auto & [id, seq] : memory.sequences) {
        if (std::any_of(seq.pending.begin(), seq.pending.end(), [](const auto & row) { return row.output >= 0; })) {
            seq_ids.push_back(id);
        }
    }
    return seq_ids.empty() ? PYFASTV_OK : flush(seq_ids);
}

pyfastv_status staged_decode::flush() {
    std::vector<llama_seq_id> seq_ids;
    for (const auto & [id, seq] : memory.sequences) {
        if (!seq.pending.empty()) {
            seq_ids.push_back(id);
        }
    }
    return seq_ids.empty() ? PYFASTV_OK : flush(seq_ids);
}

pyfastv_status staged_decode::flush(const std::vector<llama_seq_id> & seq_ids) {
    std::for_each(seq_ids.begin(), seq_ids.end(), [this](llama_seq_id seq_id) { memory.abandon(seq_id); });

    auto rows = take_off(seq_ids);

    const auto status = fly(rows, false);
    if (status == PYFASTV_OK) {
        land(rows);
    }
    return status;
}

pyfastv_status staged_decode::flush_piece(llama_seq_id seq_id, bool & more) {
    more = false;

    auto & flight = memory.in_air;
    if (!flight || !flight->has(seq_id)) {
        const auto it = memory.sequences.find(seq_id);
        if (it == memory.sequences.end() || it->second.pending.empty()) {
            return PYFASTV_OK;
        }
        if (flight) {
            memory.abandon(flight->flows[0].seq_id);
        }
        flight = std::make_unique<pyfastv::flight>(take_off({ seq_id }));
        flight->logits.resize(flight->outputs.size()*ctx.n_vocab());
    }

    on_exit gone([&] { flight.reset(); });

    auto status = fly(*flight, true);
    more = status == PYFASTV_OK && flight->stage < memory.n_stages();
    if (more) {
        gone.dismiss();
        return status;
    }
    if (status == PYFASTV_OK && !ctx.reserve_outputs((uint32_t) flight->outputs.size())) {
        memory.take_back(*flight);
        status = PYFASTV_OUT_OF_MEMORY;
    }
    if (status == PYFASTV_OK) {
        std::copy(flight->logits.begin(), flight->logits.end(), ctx.logits_of(0));
        land(*flight);
    }
    return status;
}

flight staged_decode::take_off(const std::vector<llama_seq_id> & seq_ids) {
    flight res;
    if (memory.cache(0).is_recurrent()) {
        ctx.synchronize();
    }
    for (const auto seq_id : seq_ids) {
        auto & seq = memory.sequences.at(seq_id);

        seq.turns.reserve(seq.turns.size() + 1); // what was computed can be written down
        res.flows.emplace_back(seq_id, seq, memory.schedules.of(seq_id));
        auto & before = res.before.emplace_back();
        for (int s = 1; s < memory.n_stages(); ++s) {
            before.push_back(memory.cache(s).states_of(seq_id));
        }
        for (const auto & row : seq.pending) {
            if (row.output >= 0) {
                res.outputs.push_back(row.output);
            }
        }
    }
    std::sort(res.outputs.begin(), res.outputs.end());
    res.outputs.erase(std::unique(res.outputs.begin(), res.outputs.end()), res.outputs.end()); // a row may belong to several sequences

    return res;
}

pyfastv_status staged_decode::fly(flight & flight, bool one_piece) {
    {
        // adapters may have been set, positions shifted, and a reservation have failed, since the rows were decoded
        const context_access::uninterrupted scope(ctx);
        ctx.reserve();
        ctx.update_memory();
    }

    const on_exit pause([&] {
        memory.in_flight.clear();
        memory.forget_weights();
    });
    // of the later layers only: the rows still wait, so that the call can be repeated
    on_exit take_back([&] { memory.take_back(flight); });

    for (const auto & flow : flight.flows) {
        memory.in_flight[flow.seq_id] = &flow.tokens;
    }
    try {
        pyfastv_status status = PYFASTV_OK;
        for (size_t room = ctx.n_ubatch(); status == PYFASTV_OK && flight.stage < memory.n_stages(); ) {
            if (one_piece && room < next_rows(flight)) {
                break;
            }
            room  -= std::min(room, next_rows(flight));
            status = run_next(flight, !one_piece);
        }
        if (status == PYFASTV_OK) {
            take_back.dismiss();
        }
        return status;
    } catch (const aborted &) {
        return PYFASTV_ABORTED;
    } catch (const std::bad_alloc &) {
        return PYFASTV_OUT_OF_MEMORY;
    }
}

size_t staged_decode::next_rows(const flight & flight) const {
    if (flight.chosen) {
        return flight.ends[flight.n_run] - flight.n_rows_run();
    }
    // what is compared within parts takes as long as a ubatch
    const bool is_long = std::any_of(flight.flows.begin(), flight.flows.end(), [](const flow & flow) { return flow.rows.size() > most_compared; });
    return is_long ? ctx.n_ubatch() : 0;
}

pyfastv_status staged_decode::run_next(flight & flight, bool in_place) {
    if (!flight.chosen) {
        choose(flight);
    } else {
        const timer time(counts.t_later_ms);

        if (const auto status = run_ubatch(flight, in_place); status != PYFASTV_OK) {
            return status;
        }
    }
    if (flight.n_run == flight.ends.size()) {
        flight.stage++;
        flight.chosen = false;
    }
    return PYFASTV_OK;
}

void staged_decode::choose(flight & flight) {
    const timer time(counts.t_choose_ms);

    const auto stopped = for_threads([this] { return ctx.abort_requested(); });

    const flow::tools tools = { ctx.width().n_embd, ctx.backend_cpu(), memory.archive, memory.similarities, stopped };
    const int         cut   = flight.stage - 1;

    for (auto & flow : flight.flows) {
        const bool asks = can_recall(flow.seq_id, *flow.seq) && std::any_of(flow.seq->pending.begin(), flow.seq->pending.end(),
                [](const staged_row & row) { return row.asks; });

        flow.choose(cut, asks, tools);
        flight.n_kept[flight.stage] += flow.n_kept;
    }
    flight.ends   = ends_of_ubatches(flight.flows);
    flight.n_run  = 0;
    flight.chosen = true;
}

void staged_decode::land(flight & flight) {
    ctx.set_outputs(flight.outputs);

    for (int s = 1; s < memory.n_stages(); ++s) {
        counts.n_visual_entered[s] += flight.n_kept[s];
    }
    for (auto & flow : flight.flows) {
        auto & seq = memory.sequences.at(flow.seq_id);

        seq.turns.push_back({ std::move(seq.pending), std::move(flow.recalled) });
        seq.pending.clear();
        seq.pictures = std::move(flow.pictures);
        seq.tokens   = std::move(flow.tokens);
        seq.scores   = std::move(flow.scores);

        counts.n_recalled += (int32_t) seq.turns.back().recalled.size();

        // a text that recalled nothing can be cut without taking anything back
        if (seq.tokens.empty()) {
            seq.turns.clear();
        }
    }
    n_outputs = 0;
}

pyfastv_status staged_decode::run_ubatch(flight & flight, bool in_place) {
    const int64_t t0 = ggml_time_us();
    const int     s  = flight.stage;

    std::vector<std::pair<flow *, staged_row *>> rows;
    size_t at = 0; // in the rows of all flows
    for (auto & flow : flight.flows) {
        for (auto & row : flow.rows) {
            if (at >= flight.n_rows_run() && at < flight.ends[flight.n_run]) {
                rows.emplace_back(&flow, &row);
            }
            at++;
        }
    }

    const bool last = s + 1 == memory.n_stages();

    std::vector<ubatch_row> members;
    for (const auto & [flow, row] : rows) {
        members.push_back({ flow->seq_id, row->pos.data(), row->hidden.get(), row->per_layer.get(), last && row->output >= 0 });
    }
    const auto ubatch = make_ubatch(members, ctx.n_pos_per_embd(), ctx.width(), memory.cache(s).is_recurrent());

    auto mctx = memory.init_stage(s, { ubatch });
    if (!mctx) {
        LLAMA_LOG_ERROR("%s: no room in the KV cache of the layers from %d on\n", __func__, memory.first_layers()[s]);
        return PYFASTV_FAILED;
    }

    // does the next choice read this row's attention?
    std::map<const flow *, size_t> first_read;
    for (const auto & flow : flight.flows) {
        first_read[&flow] = last ? flow.rows.size() : flow.first_read(s);
    }
    const auto is_read = [&](const std::pair<flow *, staged_row *> & row) {
        return row.second - row.first->rows.data() >= (ptrdiff_t) first_read.at(row.first);
    };

    const auto n_out = std::count_if(members.begin(), members.end(), [](const ubatch_row & row) { return row.output; });
    const context_access::later_rows scope(ctx, rows[0].second->causal, (uint32_t) n_out);

    llm_graph_result * res = nullptr;

    // from the first that is read on: a row that is scored costs as much as its attention
    auto layers = stage_to_run(s);
    for (size_t i = 0; i < rows.size() && !last; ++i) {
        if (is_read(rows[i])) {
            ask_for_scores(layers, rows[i].first->rule(s), (int32_t) (rows.size() - i));
        }
    }

    const auto status = run(layers, ubatch, *mctx, res);
    if (status != GGML_STATUS_SUCCESS) {
        return to_status(status);
    }

    if (last) {
        const size_t n_vocab = ctx.n_vocab();

        int32_t n_read = 0;
        for (const auto & [flow, row] : rows) {
            if (row->output >= 0) {
                const auto rank = std::lower_bound(flight.outputs.begin(), flight.outputs.end(), row->output) - flight.outputs.begin();
                ctx.read_logits(*res, n_read++, in_place ? ctx.logits_of(rank) : flight.logits.data() + rank*n_vocab);
            }
        }
    } else {
        const stage_output output(*res, ubatch.n_tokens, memory.archive);

        std::map<const flow *, std::vector<int64_t>> cell_of;
        for (size_t i = 0; i < rows.size(); ++i) {
            const auto & [flow, row] = rows[i];
            if (output.has_scores() && !cell_of.count(flow)) {
                cell_of[flow] = cells_of_tokens(flow->tokens, memory.cache(s).cells_of(flow->seq_id));
            }
            row->hidden = output.hidden(i);
            row->scores = is_read(rows[i]) ? output.scores(i, cell_of[flow], flow->rule(s)) : counted_floats {};
        }
    }
    flight.n_run++;

    // the tokens were counted by llama_decode()
    ctx.count_time(ggml_time_us() - t0);

    return PYFASTV_OK;
}

std::vector<size_t> staged_decode::ends_of_ubatches(const std::vector<flow> & flows) const {
    // Rows run in ubatches as large as they may be, but
    // - a picture decoded non-causally sees itself, and nothing else of its ubatch;
    // - ggml's kernels round by the number of rows: with nothing dropped, the ubatches stay those of stage 0, so that
    //   the result is stock llama.cpp's to the bit;
    // - recurrent layers take the rows of one sequence at a time.
    struct member {
        const flow *       of;
        const staged_row * row;
        bool               drops; // its schedule
    };
    const bool one_sequence = memory.cache(0).is_recurrent();

    const auto together = [=](const member & a, const member & b) {
        const bool alike = a.row->ubatch == b.row->ubatch || (a.drops && b.drops && a.row->causal && b.row->causal);

        return alike && (a.of == b.of || !one_sequence);
    };

    std::vector<member> rows;
    for (const auto & flow : flows) {
        const bool drops = flow.drops();
        for (const auto & row : flow.rows) {
            rows.push_back({ &flow, &row, drops });
        }
    }

    std::vector<size_t> res;
    for (size_t i0 = 0; i0 < rows.size(); i0 = res.back()) {
        size_t i1 = i0 + 1;
        while (i1 < rows.size() && i1 - i0 < ctx.n_ubatch() && together(rows[i0], rows[i1])) {
            i1++;
        }
        res.push_back(i1);
    }
    return res;
}

} // namespace pyfastv
