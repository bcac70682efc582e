#pragma once

#include "llama/stage.h"

#include "llama.h"

#include <cstdint>
#include <memory>

// What libllama's own files hold and call of ours (third_party/patches/0002), in the order in which a decode comes by.
// llama-cparams.h includes this, and is included by llama-context.cpp, llama-graph.cpp and llama-model.cpp; so types of
// llama.cpp's are only declared here.

class  llama_batch_allocr;
struct llama_model;
class  llm_graph_input_attn_k;
class  llm_graph_input_attn_kv;
class  llm_graph_input_attn_kv_iswa;
class  llm_graph_input_mem_hybrid;
struct llm_graph_context;
struct llm_graph_params;
class  llm_graph_result;

namespace pyfastv {

class context_access; // llama/context.h
class staged_decode;

//
// llama_context
//

// owned by the context; null: no stages
struct delete_staged_decode {
    void operator()(staged_decode * stages) const;
};
using staged_decode_ptr = std::unique_ptr<staged_decode, delete_staged_decode>;

// at the end of the constructor: attaches stages by the environment variable LLAMA_FASTV, for programs that know nothing of
// pyfastv; not to a context that drafts for another. What is wrong with it is one line on stderr, and nothing is pruned.
// Throws std::runtime_error for parameters by which any decode would end the process: there is no context then.
void attach_from_environment(llama_context & ctx, const llama_context_params & made_with);

// at the end of sched_reserve(): builds the graph of every stage once, for its largest ubatch. That finds models that cannot
// be run in stages, and allocates, so that flushing does not have to.
void reserve(staged_decode & stages);

// in graph_max_nodes(): how many nodes scores add at most
uint32_t max_score_nodes();

// in llama_decode() and llama_process(): f(), which returns llama_decode()'s values. Nothing is thrown into programs that know
// nothing of it: that becomes a value, and an error in the log.
template <typename F>
int32_t decode_result(llama_context & ctx, F && f);

// in decode(), after the batch was checked and before slots are looked for: must its later layers wait?
bool takes(staged_decode & stages, const llama_batch_allocr & balloc);

// then: llama_decode()'s values. Of a ubatch that fails, and if it throws, nothing stays.
int32_t decode(staged_decode & stages, llama_batch_allocr & balloc);

// in decode(): f(), which computes a ubatch and sets the status; null if it throws
template <typename F>
llm_graph_result * computed(ggml_status & status, F && f);

// at the start of output_reorder(), which every reading of outputs passes. What fails is in the log.
void flush_if_read(staged_decode & stages) noexcept;

//
// llama_model, llm_graph_context
//

// model.build_arch_graph(params) for the stage in params.cparams. Null if the stage ended before the last layer: then the graph
// in params.res is complete. Throws unsupported (llama/supported.h) if the model cannot be run in stages.
std::unique_ptr<llm_graph_context> build_arch_graph(const llama_model & model, const llm_graph_params & params);

// in cb()
void on_tensor(const llm_graph_context & graph, ggml_tensor * cur, const char * name, int il);

// at the start of build_attn_inp_kv(), _k() and _kv_iswa() and of build_inp_mem_hybrid(): null if the memory of the graph has no
// stages, else one input that owns what `build`, which is the function itself, builds for each stage that the graph runs
template <typename Input>
Input * staged_input(const llm_graph_context & graph, Input * (llm_graph_context::*build)() const);

template <>
llm_graph_input_mem_hybrid * staged_input(const llm_graph_context & graph, llm_graph_input_mem_hybrid * (llm_graph_context::*build)() const);

// at the start of build_attn(): the placeholder of an attention outside the stage, else null
ggml_tensor * skip_attn(const llm_graph_context & graph, ggml_tensor * wo, ggml_tensor * q_cur, int il);

// then: of an input of all stages that of layer il, any other itself
template <typename Input>
Input * input_at(Input * input, int il);

// in build_attn_mha(): beside the attention of the last layer of a stage that ends early, what the rows that are read pay to
// every KV cell (llama/scores.h)
void add_scores(const llm_graph_context & graph, ggml_tensor * q, ggml_tensor * k, ggml_tensor * kq_b,
        ggml_tensor * kq_mask, ggml_tensor * sinks, float kq_scale, int il);

//
// llama_io_read_i
//

// in read_string(), before memory is taken: throws std::runtime_error if no string in a state has this size
void check_string(uint32_t size);

//
// of the templates
//

// in catch (...): the status of what is being thrown, and an error in the log; of llama_decode(), the context reserves anew
int32_t decode_result_of_exception(llama_context & ctx) noexcept;

// function: for the log
ggml_status status_of_exception(const char * function) noexcept;

template <typename F>
int32_t decode_result(llama_context & ctx, F && f) {
    try {
        return f();
    } catch (...) {
        return decode_result_of_exception(ctx);
    }
}

template <typename F>
llm_graph_result * computed(ggml_status & status, F && f) {
    try {
        return f();
    } catch (...) {
        status = status_of_exception("llama_decode");
        return nullptr;
    }
}

} // namespace pyfastv
