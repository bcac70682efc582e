#pragma once

#include "stages/sequence.h"
#include "llama/memory/stage_cache.h"

#include <cstdint>
#include <memory>
#include <vector>

class llm_graph_result;

namespace pyfastv {

// What a stage that ends early left in its graph: a hidden row for every row of the ubatch, and for the last ones, if
// attention was read, what each paid to every KV cell.
class stage_output {
public:
    stage_output(llm_graph_result & graph, int64_t n_rows);

    bool has_scores() const { return n_scored > 0; }

    hidden_row hidden(int64_t row) const;

    // by token; empty if it was not read for this row. cells: of the stage
    std::vector<float> scores(int64_t row, const std::vector<visual_token> & tokens, const stage_cache::cells & cells) const;

private:
    int64_t n_rows;
    int64_t n_embd;
    int64_t n_kv     = 0;
    int64_t n_scored = 0; // rows

    std::shared_ptr<std::vector<float>> rows;       // [n_rows, n_embd]
    std::vector<float>                  attention;  // [n_scored, n_kv]
};

} // namespace pyfastv
