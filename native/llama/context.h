#pragma once

#include "stages/scopes.h"
#include "llama/call_sites.h"
#include "llama/memory/stage_cache.h"

#include "ggml-backend.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

struct llama_memory_i;
struct llama_memory_context_i;
struct llama_ubatch;

namespace pyfastv {

// The inside of a llama_context, as far as stages need it; nothing else looks into one. As cheap as a reference.
class context_access {
public:
    explicit context_access(llama_context & ctx) : ctx(ctx) {}

    // the stages that it has, null: none

    static staged_decode *       stages_of(llama_context & ctx);
    static const staged_decode * stages_of(const llama_context & ctx);

    staged_decode * stages() const { return stages_of(ctx); }
    void set_stages(staged_decode_ptr stages) const;

    // its model and its parameters

    const llama_model & model() const;

    int32_t  n_layer()        const;
    int64_t  n_vocab()        const;
    uint32_t n_pos_per_embd() const; // positions of a token: 1, or 4 with M-RoPE

    row_width width() const; // of a row between stages

    uint32_t n_ctx()     const; // of one sequence
    uint32_t n_ubatch()  const;
    uint32_t n_seq_max() const;
    bool     unified()   const; // all sequences share the cells

    bool causal() const; // attention

    // throws std::runtime_error where any llama_decode() would end the process
    void check_params() const;

    // why its outputs cannot come from stages; null if they can. It may change between calls.
    const char * unsupported_output() const;

    // its memory

    // null: none
    static const llama_memory_i * memory_of(const llama_context & ctx);

    bool has_memory() const { return memory_of(ctx) != nullptr; }

    cache_layout layout() const; // throws unsupported if the memory is of no kind that a stage can have

    // for the layers [il0, il1)
    std::unique_ptr<stage_cache> make_cache(cache_layout layout, int32_t il0, int32_t il1, uint32_t n_cells) const;

    // replaces it; nothing is computed meanwhile. Null: it has none until the next call.
    void set_memory(std::unique_ptr<llama_memory_i> memory) const;

    // computing

    ggml_backend_sched_eval_callback eval_callback()      const;
    void *                           eval_callback_data() const;

    // positions of its batches may leave some out
    void allow_gaps() const;

    // the buffers of all graphs, if something has changed that they depend on
    void reserve() const;

    // reserve() has something to do
    void forget_reservation() const noexcept;

    // in reserve(): those of one stage, for its largest ubatch. Throws std::runtime_error if they cannot be allocated.
    void reserve_stage(const stage & layers, llama_memory_context_i & mctx) const;
    void note_buffer_sizes() const; // the context compares them when it is freed

    // shifts of positions that were asked for are done
    void update_memory() const;

    // room for that many outputs; false: there is none
    bool reserve_outputs(uint32_t n_outputs) const;

    // One ubatch through the layers of one stage, with a callback (null: none). res: what was computed.
    ggml_status run(const stage & layers, const llama_ubatch & ubatch, llama_memory_context_i & mctx,
            ggml_backend_sched_eval_callback callback, void * callback_data, llm_graph_result *& res) const;

    // until what was computed is there
    void synchronize() const;

    // what its abort callback says
    bool abort_requested() const;

    // for as long as it lives, run() is of rows that were decoded with such attention, and n_outputs of them are outputs
    class later_rows {
    public:
        later_rows(const context_access & access, bool causal, uint32_t n_outputs);

    private:
        scoped_value<bool>     causal;
        scoped_value<uint32_t> n_outputs;
    };

    // a backend for products of rows on the CPU
    ggml_backend_t backend_cpu() const;

    // outputs of the last batch

    float * logits_of(size_t rank) const; // F32 [n_vocab], among the outputs of the batch

    // of row `row` of the outputs of a graph
    void read_logits(llm_graph_result & res, int32_t row, float * to) const;
    void spoil_logits() const; // all NaN

    // batch indices, ascending
    void set_outputs(const std::vector<int32_t> & indices) const;

    // time that was spent on the tokens of the last batch
    void count_time(int64_t us) const;

    // without an abort callback for as long as it lives: a shift of positions that is stopped half-way cannot be repeated
    class uninterrupted {
    public:
        explicit uninterrupted(const context_access & access);
        ~uninterrupted();

        uninterrupted(const uninterrupted &) = delete;

    private:
        llama_context &     ctx;
        ggml_abort_callback callback;
        void *              data;
    };

private:
    llama_context & ctx;
};

// the model's name for its architecture
std::string arch_name_of(const llama_context & ctx);

// a row of the table of token embeddings, in F32; false: there is none
bool token_embedding(const llama_model & model, int32_t token, float * out);

} // namespace pyfastv
