#include "llama/stage_output.h"

#include "llama/stage_graph.h"
#include "llama/scores.h"

#include "llama-graph.h"

#include "ggml-backend.h"
#include "ggml.h"

namespace pyfastv {

stage_output::stage_output(llm_graph_result & graph, int64_t n_rows) : n_rows(n_rows) {
    const ggml_tensor * t_rows = ggml_graph_get_tensor(graph.get_gf(), rows_name);

    n_embd = t_rows->ne[0];
    rows   = std::make_shared<std::vector<float>>(n_embd*n_rows);
    ggml_backend_tensor_get(t_rows, rows->data(), 0, ggml_nbytes(t_rows));

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
    return hidden_row(rows, rows->data() + row*n_embd);
}

std::vector<float> stage_output::scores(int64_t row, const std::vector<visual_token> & tokens, const stage_cache::cells & cells) const {
    const int64_t scored = row - (n_rows - n_scored);
    if (scored < 0) {
        return {};
    }

    std::vector<float> res(tokens.size(), 0.0f);

    for (size_t t = 0; t < tokens.size(); ++t) {
        const auto cell = tokens[t].gone ? cells.end() : cells.find(cell_key(tokens[t].pos));
        if (cell != cells.end() && cell->second < n_kv) {
            res[t] = attention[scored*n_kv + cell->second];
        }
    }
    return res;
}

} // namespace pyfastv
