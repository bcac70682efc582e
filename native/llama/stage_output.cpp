#include "llama/stage_output.h"

#include "llama/stage_graph.h"
#include "llama/scores.h"

#include "llama-graph.h"

#include "ggml-backend.h"
#include "ggml.h"

#include <utility>

namespace pyfastv {

stage_output::stage_output(llm_graph_result & graph, int64_t n_rows, ledger_ptr archive) :
    rows(ggml_graph_get_tensor(graph.get_gf(), rows_name)), n_rows(n_rows), archive(std::move(archive)) {
    const auto blocks = scores_in(graph.get_gf());
    for (const auto * block : blocks) {
        n_kv      = block->ne[0];
        n_scored += block->ne[1];
    }
    attention.resize(n_kv*n_scored);

    auto * to = attention.data();
    for (const auto * block : blocks) {
        ggml_backend_tensor_get(block, to, 0, ggml_nbytes(block));
        to += ggml_nelements(block);
    }
}

hidden_row stage_output::hidden(int64_t row) const {
    const size_t bytes = rows->ne[0]*sizeof(float);

    return new_hidden_row(rows->ne[0], archive, [&](float * to) { ggml_backend_tensor_get(rows, to, row*bytes, bytes); });
}

counted_floats stage_output::scores(int64_t row, const std::vector<int64_t> & cell_of) const {
    counted_floats res(archive);

    const int64_t scored = row - (n_rows - n_scored);
    if (scored < 0) {
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
