// staged_decode: the later layers

#include "stages/caught.h"
#include "stages/flow.h"
#include "stages/scopes.h"
#include "llama/stage_output.h"
#include "stages/staged_decode.h"

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
    {
        // adapters may have been set, positions shifted, and a reservation have failed, since the rows were decoded
        const context_access::uninterrupted scope(ctx);
        ctx.reserve();
        ctx.update_memory();
    }

    std::vector<flow> flows;
    for (const auto seq_id : seq_ids) {
        auto & seq = memory.sequences.at(seq_id);

        seq.turns.reserve(seq.turns.size() + 1); // what was computed can be written down
        flows.emplace_back(seq_id, seq, memory.schedules.of(seq_id));
    }

    const auto status = fly(flows);
    if (status != PYFASTV_OK) {
        return status;
    }

    for (auto & flow : flows) {
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

    return PYFASTV_OK;
}

pyfastv_status staged_decode::fly(std::vector<flow> & flows) {
    const on_exit land([&] {
        memory.in_flight.clear();
        memory.forget_weights();
    });
    // of the later layers only: the rows still wait, so that the call can be repeated
    on_exit take_back([&] {
        for (const auto & flow : flows) {
            memory.forget_later(flow.seq_id, flow.seq->pending.front().pos[0], flow.recalled);
        }
    });

    for (const auto & flow : flows) {
        memory.in_flight[flow.seq_id] = &flow.tokens;
    }
    try {
        const auto status = run_later(flows);
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

pyfastv_status staged_decode::run_later(std::vector<flow> & flows) {
    const flow::tools tools = { ctx.n_embd(), ctx.backend_cpu(), memory.archive, memory.similarities };

    // batch indices of the outputs, in the order in which they are read
    std::vector<int32_t> outputs;
    for (const auto & flow : flows) {
        for (const auto & row : flow.rows) {
            if (row.output >= 0) {
                outputs.push_back(row.output);
            }
        }
    }
    std::sort(outputs.begin(), outputs.end());
    outputs.erase(std::unique(outputs.begin(), outputs.end()), outputs.end()); // a row may belong to several sequences

    int32_t n_kept[PYFASTV_MAX_STAGES] = {};

    for (int s = 1; s < memory.n_stages(); ++s) {
        {
            const timer time(counts.t_choose_ms);

            for (auto & flow : flows) {
                const bool asks = can_recall(flow.seq_id, *flow.seq) && std::any_of(flow.seq->pending.begin(), flow.seq->pending.end(),
                        [](const staged_row & row) { return row.asks; });

                flow.choose(s - 1, asks, tools);
                n_kept[s] += flow.n_kept;
            }
        }

        const timer time(counts.t_later_ms);

        const auto status = run_later_stage(s, flows, outputs);
        if (status != PYFASTV_OK) {
            return status;
        }
    }

    ctx.set_outputs(outputs);

    for (int s = 1; s < memory.n_stages(); ++s) {
        counts.n_visual_entered[s] += n_kept[s];
    }

    return PYFASTV_OK;
}

pyfastv_status staged_decode::run_later_stage(int s, std::vector<flow> & flows, const std::vector<int32_t> & outputs) {
    const int64_t t0 = ggml_time_us();

    const auto ubatches = make_ubatches(flows);
    if (ubatches.empty()) {
        return PYFASTV_OK;
    }

    auto mctx = memory.init_stage(s, ubatches);
    if (!mctx) {
        LLAMA_LOG_ERROR("%s: no room in the KV cache of the layers from %d on\n", __func__, memory.first_layers()[s]);
        return PYFASTV_FAILED;
    }

    const bool last = s + 1 == memory.n_stages();

    // does the next choice read this row's attention?
    std::map<const flow *, size_t> first_read;
    for (const auto & flow : flows) {
        first_read[&flow] = last ? flow.rows.size() : flow.first_read(s);
    }
    const auto is_read = [&](const std::pair<flow *, staged_row *> & row) {
        return row.second - row.first->rows.data() >= (ptrdiff_t) first_read.at(row.first);
    };

    size_t i_flow = 0, i_row = 0; // of the first row of the ubatch

    for (const auto & ubatch : ubatches) {
        std::vector<std::pair<flow *, staged_row *>> rows;
        for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
            while (i_row == flows[i_flow].rows.size()) {
                i_flow++;
                i_row = 0;
            }
            rows.emplace_back(&flows[i_flow], &flows[i_flow].rows[i_row++]);
        }

        const auto n_out = last ? (int32_t) std::count(ubatch.output, ubatch.output + ubatch.n_tokens, 1) : 0;
        if (!last) {
            std::fill_n(ubatch.output, ubatch.n_tokens, 0);
        }

        const context_access::later_rows scope(ctx, rows[0].second->causal, n_out);

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
            int32_t n_read = 0;
            for (const auto & [flow, row] : rows) {
                if (row->output >= 0) {
                    const auto rank = std::lower_bound(outputs.begin(), outputs.end(), row->output) - outputs.begin();
                    ctx.read_logits(*res, n_read++, (int32_t) rank);
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

        mctx->next();
    }

    // the tokens were counted by llama_decode()
    ctx.count_time(ggml_time_us() - t0);

    return PYFASTV_OK;
}

std::vector<llama_ubatch> staged_decode::make_ubatches(const std::vector<flow> & flows) const {
    const uint32_t n_pos  = ctx.n_pos_per_embd();
    const int64_t  n_embd = ctx.n_embd();

    // Rows run in ubatches as large as they may be, but
    // - a picture decoded non-causally sees itself, and nothing else of its ubatch;
    // - ggml's kernels round by the number of rows: with nothing dropped, the ubatches stay those of stage 0, so that
    //   the result is stock llama.cpp's to the bit.
    struct member {
        llama_seq_id       seq_id;
        const staged_row * row;
        bool               drops; // its schedule
    };
    const auto together = [](const member & a, const member & b) {
        return a.row->ubatch == b.row->ubatch || (a.drops && b.drops && a.row->causal && b.row->causal);
    };

    std::vector<member> rows;
    for (const auto & flow : flows) {
        const bool drops = flow.drops();
        for (const auto & row : flow.rows) {
            rows.push_back({ flow.seq_id, &row, drops });
        }
    }

    std::vector<llama_ubatch> ubatches;

    for (size_t i0 = 0; i0 < rows.size(); ) {
        size_t i1 = i0 + 1;
        while (i1 < rows.size() && i1 - i0 < ctx.n_ubatch() && together(rows[i0], rows[i1])) {
            i1++;
        }

        std::vector<ubatch_row> members;
        for (size_t i = i0; i < i1; ++i) {
            const auto & row = rows[i].row;
            members.push_back({ rows[i].seq_id, row->pos.data(), row->hidden.get(), row->output >= 0 });
        }
        ubatches.push_back(make_ubatch(members, n_pos, n_embd));

        i0 = i1;
    }

    return ubatches;
}

} // namespace pyfastv
