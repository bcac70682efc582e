#pragma once

#include "llama.h"

#include <cstdint>
#include <vector>

namespace pyfastv {

// One row that waits at the stage boundary.
struct pending_row {
    llama_pos   pos;
    uint32_t    cell;   // its KV cell in stage 0, which the scores are indexed by
    int32_t     ubatch; // number of the ubatch that brought it
    int32_t     span;   // visual rows: number of the picture; others: -1
    int32_t     output; // index in its llama_decode() batch if its logits were asked for; else -1
    bool        causal; // decoded with causal attention

    std::vector<float> scores; // [n_kv] attention that the row pays to the cells of stage 0; empty: not read

    bool visual() const { return span >= 0; }
};

// The rows that have been through stage 0 only, in prompt order, with their hidden states.
class pending_rows {
public:
    const int64_t n_embd;

    explicit pending_rows(int64_t n_embd) : n_embd(n_embd) {}

    bool   empty() const { return rows.empty(); }
    size_t size()  const { return rows.size(); }

    const pending_row & operator[](size_t i) const { return rows[i]; }
    const float       * hidden(size_t i)     const { return data.data() + i*n_embd; }

    const std::vector<pending_row> & all() const { return rows; }

    // make room for n more rows; may throw std::bad_alloc, and then nothing has changed
    void reserve(size_t n);

    // append rows and return where their hidden states go: F32 [added.size(), n_embd]
    float * append(std::vector<pending_row> added);

    // outputs nobody has read count as not asked for
    void forget_outputs();

    void clear();
    void remove(llama_pos p0, llama_pos p1);                  // positions [p0, p1)
    void shift (llama_pos p0, llama_pos p1, llama_pos delta);
    void divide(llama_pos p0, llama_pos p1, int d);

private:
    std::vector<pending_row> rows;
    std::vector<float>       data; // [rows.size(), n_embd]
};

} // namespace pyfastv
