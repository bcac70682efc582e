#pragma once

#include "pyfastv.h"

#include "stages/sequence.h"
#include "llama/memory/stage_cache.h"
#include "llama/stage.h"

#include <cstdint>
#include <vector>

class llm_graph_result;
struct ggml_tensor;

namespace pyfastv {

// A graph of this stage gives what a rule reads of the last n rows of the ubatch.
void ask_for_scores(stage & layers, const pyfastv_cut & rule, int32_t n);

// What a stage that ends early left in its graph: a hidden row for every row of the ubatch, and for the last ones, if
// attention was read, what each paid to every KV cell. It is there until the next graph is computed.
class stage_output {
public:
    // archive: who counts the rows and scores that are given out
    stage_output(llm_graph_result & graph, int64_t n_rows, ledger_ptr archive);

    bool has_scores() const { return with_rope.n_scored + no_rope.n_scored > 0; }

    // with memory of its own: the others of the ubatch may go
    hidden_row hidden(int64_t row) const;

    // what layers have of it beside the hidden row, of stage 0; null: nothing
    hidden_row per_layer(int64_t row) const;

    // What a rule reads of a row, by token; empty if it reads none, or not of this row. cell_of: cells_of_tokens() in the stage
    counted_floats scores(int64_t row, const std::vector<int64_t> & cell_of, const pyfastv_cut & rule) const;

private:
    struct row_block {
        const ggml_tensor * tensor; // null: the graph has none

        // of a tensor that lies on a device: all of it, read when the first row is asked for
        mutable std::vector<float> copy;
    };
    hidden_row row_of(const row_block & block, int64_t row) const;

    row_block rows;      // F32 [n_embd, n_rows]
    row_block of_layers; // F32 [n_embd_per_layer, n_layer, n_rows]; null

    struct paid {
        int64_t n_kv     = 0;
        int64_t n_scored = 0; // rows

        std::vector<float> attention; // [n_scored, n_kv]
    };
    static paid paid_in(llm_graph_result & graph, bool no_rope);

    int64_t    n_rows;
    paid       with_rope;
    paid       no_rope;
    ledger_ptr archive;
};

// [token] its cell; -1: it has none
std::vector<int64_t> cells_of_tokens(const std::vector<visual_token> & tokens, const stage_cache::cells & cells);

} // namespace pyfastv
