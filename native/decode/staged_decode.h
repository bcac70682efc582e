#pragma once

#include "pyfastv.h"

#include "graph/stage.h"
#include "memory/staged_memory.h"

#include "ggml.h"

#include <cstdint>
#include <memory>
#include <vector>

struct llama_context;
class  llama_batch_allocr;
class  llm_graph_result;

namespace pyfastv {

// The decode of a context that has stages.
//
// Batches without anything to wait for run as one full graph over the memories of all stages: llama.cpp's own decode,
// at its speed. From the first visual row on, decode() runs stage 0 only and leaves the rows in the memory's `pending`.
// flush() chooses among the visual rows and runs the later layers on those chosen and on the text rows.
class staged_decode {
public:
    // Replaces the memory of the context. Throws std::invalid_argument for params out of range, unsupported if the
    // context cannot have stages, std::runtime_error when memory runs out; the context then has a plain memory again.
    static void attach(llama_context & ctx, const pyfastv_params & params);

    // call site at the end of llama_context's constructor: attach() by the environment variable LLAMA_FASTV, for programs
    // that know nothing of pyfastv. What is wrong with it is one line on stderr, and nothing is pruned.
    static void attach_from_env(llama_context & ctx);

    // Gives the context a plain memory again.
    static void detach(llama_context & ctx);

    // call site at the end of llama_context::sched_reserve: build every graph once, for its largest ubatch. That finds
    // models that cannot be run in stages, and allocates, so that flush() does not have to.
    void reserve();

    // call sites in llama_context::decode, after the batch was checked and before slots are looked for
    bool takes(const llama_batch_allocr & balloc) const;
    int  decode(llama_batch_allocr & balloc); // llama_decode()'s return values

    // call site in llama_context::output_reorder, which every reading of outputs passes
    void flush_if_read();

    pyfastv_status flush();

    void set_media(pyfastv_media media);

    pyfastv_report report() const;
    void           reset_report();

    const std::vector<int32_t> & kept()   const { return last_kept; }
    const std::vector<float>   & scores() const { return last_scores; }

private:
    // what the memory of a context was made with; another memory is made alike
    struct cache_params {
        ggml_type type_k;
        ggml_type type_v;
    };

    // why its outputs cannot come from stages; null if they can. It may change between calls.
    static const char * unsupported_output(const llama_context & ctx);

    static cache_params types_of(llama_memory_i & memory);
    static kv_cache_ptr make_cache(const llama_context & ctx, cache_params types, int32_t il0, int32_t il1);
    static void         make_plain(llama_context & ctx, cache_params types);

    staged_decode(llama_context & ctx, const pyfastv_params & params, staged_memory & memory);

    int run_stage0(llama_batch_allocr & balloc);

    // one ubatch through the layers of one stage; its slots were found by staged_memory::init_stage()
    ggml_status run(stage layers, const llama_ubatch & ubatch, llama_memory_context_i & mctx, llm_graph_result *& res);

    // the score of every cell of stage 0, by the rule
    std::vector<float> cell_scores() const;

    // indices into pending of the rows that enter the later layers; notes the choice in last_kept, last_scores
    std::vector<size_t> choose();

    // the chosen rows as ubatches for the later layers
    std::vector<llama_ubatch> make_ubatches(const std::vector<size_t> & chosen) const;

    // what stage 0 left in its graph: the hidden rows and the scores
    void read_rows(llm_graph_result & res, const llama_ubatch & ubatch, const std::vector<int8_t> & outputs,
            const llama_kv_cache::slot_info & sinfo, bool visual);

    llama_context  & ctx;
    pyfastv_params   params;
    staged_memory  & memory; // owned by the context

    pyfastv_media media = PYFASTV_MEDIA_IMAGE;

    int32_t n_ubatches = 0;    // run through stage 0
    int32_t n_spans    = 0;    // pictures begun
    bool    new_span   = true; // does the next visual row begin a picture?
    int32_t n_outputs  = 0;    // outputs of the last batch that wait in pending

    std::vector<int32_t> last_kept;
    std::vector<float>   last_scores;

    pyfastv_report counts = {};
};

} // namespace pyfastv
