#include "llama/stage_output.h"

#include "llama/stage_graph.h"
#include "llama/scores.h"
#include "settings/rules.h"

#include "llama-graph.h"

#include "ggml-backend.h"
#include "ggml.h"

#include <algorithm>
#include <utility>

namespace pyfastv {

void ask_for_scores(stage & layers, const pyfastv_cut & rule, int32_t n) {
    if (reads_attention(rule)) {
        auto & scored = score_rule_of(rule).no_rope ? layers.n_scored_no_rope : layers.n_scored;
        scored = std::max(scored, n);
    }
}

stage_output::stage_output(llm_graph_result & graph, int64_t n_rows, ledger_ptr archive) :
    rows { ggml_graph_get_tensor(graph.get_gf(), rows_name), {} },
    of_layers { ggml_graph_get_tensor(graph.get_gf(), per_layer_name), {} }, n_rows(n_rows),
    with_rope(paid_in(graph, false)), no_rope(paid_in(graph, true)), archive(std::move(archive)) {}

stage_output::paid stage_output::paid_in(llm_graph_result & graph, bool no_rope) {
    paid res;

    const auto blocks = scores_in(graph.get_gf(), no_rope);
    for (const auto * block : blocks) {
        res.n_kv      = block->ne[0];
        res.n_scored += block->ne[1];
    }
    res.attention.resize(res.n_kv*res.n_scored);

    auto * to = res.attention.data();
    for (const auto * block : blocks) {
        ggml_backend_tensor_get(block, to, 0, ggml_nbytes(block));
        to += ggml_nelements(block);
    }
    return res;
}

hidden_row stage_output::hidden(int64_t row) const { return row_of(rows, row); }

hidden_row stage_output::per_layer(int64_t row) const { return of_layers.tensor ? row_of(of_layers, row) : nullptr; }

hidden_row stage_output::row_of(const row_block & block, int64_t row) const {
    const auto *  tensor = block.tensor;
    const int64_t n      = ggml_nelements(tensor)/n_rows;
    const size_t  bytes  = n*sizeof(float);

    // each read of a device waits for it: one of all rows, not one of each
    auto * const buffer = tensor->view_src ? tensor->view_src->buffer : tensor->buffer;
    if (block.copy.empty() && !ggml_backend_buffer_is_host(buffer)) {
        block.copy.resize(n*n_rows);
        ggml_backend_tensor_get(tensor, block.copy.data(), 0, n_rows*bytes);
    }
    return new_hidden_row(n, archive, [&](float * to) {
        if (block.copy.empty()) {
            ggml_backend_tensor_get(tensor, to, row*bytes, bytes);
        } else {
            std::copy_n(block.copy.data() + row*n, n, to);
        }
    });
}

counted_floats stage_output::scores(int64_t row, const std::vector<int64_t> & cell_of, const pyfastv_cut & rule) const {
    counted_floats res(archive);

    const auto & [n_kv, n_scored, attention] = score_rule_of(rule).no_rope ? no_rope : with_rope;

    const int64_t scored = row - (n_rows - n_scored);
    if (scored < 0 || !reads_attention(rule)) {
        return res;
    }
    res.resize(cell_of.size(), 0.0f);

    const float * paid = attention.data() + scored*n_kv;
    for (size_t t = 0; t < cell_of.size(); ++t) {
        if (cell_of[t] >= 0 && cell_of[t] < n_kv) {
            res[t] = paid[cell_of[t]];
        }
    }
    return res;
}

std::vector<int64_t> cells_of_tokens(const std::vector<visual_token> & tokens, const stage_cache::cells & cells) {
    std::vector<int64_t> res;
    res.reserve(tokens.size());
    for (const auto & token : tokens) {
        const auto cell = token.gone ? cells.end() : cells.find(cell_key(token.pos));
        res.push_back(cell == cells.end() ? -1 : (int64_t) cell->second);
    }
    return res;
}

} // namespace pyfastv
