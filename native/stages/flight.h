#pragma once

#include "pyfastv.h"

#include "llama/memory/stage_cache.h"
#include "stages/flow.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace pyfastv {

// The rows of sequences on their way through the later stages, piece by piece. The sequences change when all of it is done.
struct flight {
    std::vector<flow>    flows;
    std::vector<std::vector<stage_cache::states>> before; // [flow][stage - 1]: if it does not come to the end, they are put back
    std::vector<int32_t> outputs; // batch indices, in the order in which they are read
    std::vector<float>   logits;  // F32 [outputs, n_vocab] of a flight that others are decoded beside; else they have their place

    int                 stage  = 1;     // that is next
    bool                chosen = false; // at the cut in front of it; then:
    std::vector<size_t> ends;           // of its ubatches, counted in the rows of all flows
    size_t              n_run  = 0;     // ubatches

    int32_t n_kept[PYFASTV_MAX_STAGES] = {};

    bool has(llama_seq_id seq_id) const {
        return std::any_of(flows.begin(), flows.end(), [seq_id](const flow & f) { return f.seq_id == seq_id; });
    }

    // rows of the stage that were run
    size_t n_rows_run() const { return n_run == 0 ? 0 : ends[n_run - 1]; }

    // that have no cell yet in a stage that is next, or comes later: not more than these
    size_t n_rows_left(int32_t s) const {
        size_t n = 0;
        for (const auto & flow : flows) {
            n += flow.rows.size();
        }
        return s == stage && chosen ? n - n_rows_run() : n;
    }
};

} // namespace pyfastv
