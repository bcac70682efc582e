#pragma once

struct llama_model;

// How one graph builder of llama.cpp, which knows nothing of stages, builds the graph of one stage.
//
// Every builder announces the output of its layer il as cb(cur, "l_out", il), and every attention passes
// llm_graph_context::build_attn. A stage [il0, il1) hangs on these two points:
//   - attention outside the stage is not built (a placeholder stands for it);
//   - at "l_out" of il0-1 the graph is emptied and that tensor becomes an input, filled with the rows that an earlier
//     stage left behind;
//   - at "l_out" of il1-1 that tensor becomes the output and the builder is left through an exception;
//   - what Gemma 4's builder announces as "inp_per_layer", which is made of the tokens, is an output of the first stage, and an
//     input of the later ones.
// What it calls is in llama/call_sites.h.
namespace pyfastv {

// name of the output of a stage that ends early: F32 [n_embd, n_tokens]
constexpr const char * rows_name = "pyfastv_rows";

// What layers have of a token beside the stream between them (Gemma 4's per-layer embeddings), of a stage that begins with the
// first layer: F32 [n_embd_per_layer, n_layer, n_tokens]. In later stages it is an input.
constexpr const char * per_layer_name = "pyfastv_per_layer";

// the model whose graph this thread builds, inside of build_arch_graph()
const llama_model & model_of_graph();

} // namespace pyfastv
