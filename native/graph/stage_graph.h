#pragma once

#include <functional>
#include <memory>

struct ggml_tensor;
struct llama_model;
struct llm_graph_context;
struct llm_graph_params;

class llama_kv_cache_context;
class llama_kv_cache_iswa_context;
class llm_graph_input_attn_kv;
class llm_graph_input_attn_kv_iswa;

// How one graph builder of llama.cpp, which knows nothing of stages, builds the graph of one stage.
//
// Every builder announces the output of its layer il as cb(cur, "l_out", il), and every attention passes
// llm_graph_context::build_attn. A stage [il0, il1) hangs on these two points:
//   - attention outside the stage is not built (a placeholder stands for it);
//   - at "l_out" of il0-1 the graph is emptied and that tensor becomes an input, filled with the rows that an earlier
//     stage left behind;
//   - at "l_out" of il1-1 that tensor becomes the output and the builder is left through an exception.
namespace pyfastv {

// name of the output of a stage that ends early: F32 [n_embd, n_tokens]
constexpr const char * rows_name = "pyfastv_rows";

// model.build_arch_graph(params) for the stage in params.cparams. Null if the stage ended before the last layer: then
// the graph in params.res is complete. Throws unsupported (schedule/schedule.h) if the model cannot be run in stages.
std::unique_ptr<llm_graph_context> build_arch_graph(const llama_model & model, const llm_graph_params & params);

// the model whose graph this thread builds, inside of build_arch_graph()
const llama_model & model_of_graph();

// call site in llm_graph_context::cb
void on_tensor(const llm_graph_context & graph, ggml_tensor * cur, const char * name, int il);

// call site at the start of llm_graph_context::build_attn: the placeholder of an attention outside the stage, else null
ggml_tensor * skip_attn(const llm_graph_context & graph, ggml_tensor * wo, ggml_tensor * q_cur, int il);

// call sites in llm_graph_context::build_attn_inp_kv and build_attn_inp_kv_iswa: null if the memory of the graph has no
// stages, else one input that owns an input for each stage that the graph runs; make_inp builds one of these.
template <typename Input, typename Context>
using make_attn_inp = std::function<std::unique_ptr<Input>(const Context * mctx)>;

std::unique_ptr<llm_graph_input_attn_kv> build_attn_inp(const llm_graph_context & graph,
        const make_attn_inp<llm_graph_input_attn_kv, llama_kv_cache_context> & make_inp);

std::unique_ptr<llm_graph_input_attn_kv_iswa> build_attn_inp_iswa(const llm_graph_context & graph,
        const make_attn_inp<llm_graph_input_attn_kv_iswa, llama_kv_cache_iswa_context> & make_inp);

} // namespace pyfastv
