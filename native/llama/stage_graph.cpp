#include "llama/stage_graph.h"

#include "llama/call_sites.h"
#include "llama/staged_input.h"
#include "stages/staged_memory.h"
#include "llama/supported.h"
#include "llama/ubatch.h"

#include "llama-cparams.h"
#include "llama-graph.h"
#include "llama-hparams.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

#include "ggml-backend.h"
#include "ggml.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

namespace pyfastv {
namespace {

// thrown through the builder at the end of a stage, caught in build_arch_graph()
struct stage_end {};

// one graph is built at a time on a thread
thread_local bool                began = false; // did the builder announce the boundary at which the stage begins?
thread_local const llama_model * model_built = nullptr;

// the rows that enter a stage
class graph_input_rows : public llm_graph_input_i {
public:
    explicit graph_input_rows(ggml_tensor * rows) : rows(rows) {}

    void set_input(const llama_ubatch * ubatch) override {
        ggml_backend_tensor_set(rows, ubatch->embd, 0, ggml_nbytes(rows));
    }

    bool can_reuse(const llm_graph_params & params) override {
        return rows->ne[1] == (int64_t) params.ubatch.n_tokens;
    }

private:
    ggml_tensor * rows; // F32 [n_embd, n_tokens]
};

// what layers have of these rows beside them
class graph_input_per_layer : public llm_graph_input_i {
public:
    graph_input_per_layer(ggml_tensor * values, int64_t n_embd) : values(values), n_embd(n_embd) {}

    void set_input(const llama_ubatch * ubatch) override {
        ggml_backend_tensor_set(values, per_layer_of(*ubatch, n_embd), 0, ggml_nbytes(values));
    }

    bool can_reuse(const llm_graph_params & params) override {
        return values->ne[2] == (int64_t) params.ubatch.n_tokens;
    }

private:
    ggml_tensor * values; // F32 [n_embd_per_layer, n_layer, n_tokens]

    const int64_t n_embd;
};

using cell_list = std::vector<staged_memory::cell_weight> staged_memory::cell_weights::*;

// adds to the mask, F32 or F16 [n_kv, n_tokens], in the rows of each sequence; what is masked stays so
void add_to_mask(ggml_tensor * mask, const staged_memory::weights_of_sequences & weights, cell_list list, const llama_ubatch & ubatch) {
    if (!mask || !mask->buffer || weights.empty()) {
        return;
    }
    // llama.cpp fills masks in place, too
    GGML_ASSERT(ggml_backend_buffer_is_host(mask->buffer));

    for (int64_t row = 0; row < ubatch.n_tokens; ++row) {
        const auto of_sequence = weights.find(ubatch.seq_id[row][0]);
        if (of_sequence == weights.end()) {
            continue;
        }
        for (const auto & [cell, log_size] : of_sequence->second.*list) {
            if (cell >= mask->ne[0]) {
                continue;
            }
            if (mask->type == GGML_TYPE_F16) {
                auto & value = ((ggml_fp16_t *) mask->data)[row*mask->ne[0] + cell];
                value = ggml_fp32_to_fp16(ggml_fp16_to_fp32(value) + log_size);
            } else {
                ((float *) mask->data)[row*mask->ne[0] + cell] += log_size;
            }
        }
    }
}

template <typename T>
void drop_inputs(llm_graph_result & res) {
    auto & inputs = res.inputs;
    inputs.erase(std::remove_if(inputs.begin(), inputs.end(), [](const llm_graph_input_ptr & input) {
        return dynamic_cast<T *>(input.get()) != nullptr;
    }), inputs.end());
}

bool in_graph(ggml_cgraph * gf, const ggml_tensor * tensor) {
    return tensor && ggml_graph_get_tensor(gf, tensor->name) == tensor;
}

// Inputs are filled whether the shortened graph uses them or not, so each needs memory.
void allocate_inputs(llm_graph_result & res, const ggml_tensor * tokens, const ggml_tensor * embd) {
    ggml_context * ctx = res.get_ctx();

    for (ggml_tensor * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) {
        if ((t->flags & GGML_TENSOR_FLAG_INPUT) && t != tokens && t != embd && ggml_nelements(t) > 0) {
            ggml_build_forward_expand(res.get_gf(), t);
        }
    }
}

void make_input(ggml_tensor * cur) {
    cur->op        = GGML_OP_NONE;
    cur->view_src  = nullptr;
    cur->view_offs = 0;
    std::fill(std::begin(cur->src), std::end(cur->src), nullptr);
    ggml_set_input(cur);
}

void begin_stage(const llm_graph_context & graph, ggml_tensor * cur) {
    if (cur->type != GGML_TYPE_F32 || !ggml_is_contiguous(cur) ||
            cur->ne[0] != graph.n_embd || cur->ne[1] != graph.n_tokens || ggml_nelements(cur) != graph.n_embd*graph.n_tokens) {
        throw unsupported("the stream between its layers is not one row of n_embd numbers for each token");
    }

    ggml_graph_clear(graph.gf);
    make_input(cur);

    drop_inputs<llm_graph_input_embd>(*graph.res);
    graph.res->add_input(std::make_unique<graph_input_rows>(cur));

    began = true;
}

[[noreturn]] void end_stage(const llm_graph_context & graph, ggml_tensor * cur) {
    ggml_set_name(cur, rows_name);
    ggml_set_output(cur);
    ggml_build_forward_expand(graph.gf, cur);

    // the rows of a stage that ends early are all read, whichever of them are outputs
    drop_inputs<llm_graph_input_out_ids>(*graph.res);

    throw stage_end {};
}

} // namespace

std::unique_ptr<llm_graph_context> build_arch_graph(const llama_model & model, const llm_graph_params & params) {
    const auto & stage = params.cparams.stage;

    if (!stage.partial()) {
        return model.build_arch_graph(params);
    }

    began       = stage.il0 == 0;
    model_built = &model;

    std::unique_ptr<llm_graph_context> graph;
    bool ended = false;

    try {
        graph = model.build_arch_graph(params);
    } catch (const stage_end &) {
        ended = true;
    }

    if (!began || ended != stage.ends_early()) {
        throw unsupported("its graph builder does not announce the outputs of its layers");
    }

    auto & res = *params.res;

    // t_inp_embd is what was selected of the two inputs, named "embd"; the leafs behind it carry these names
    const ggml_tensor * tokens = res.t_inp_tokens;
    const ggml_tensor * embd   = ggml_get_tensor(res.get_ctx(), "inp_embd");

    if (stage.il0 == 0 && model.hparams.n_embd_per_layer > 0 && !ggml_graph_get_tensor(res.get_gf(), per_layer_name)) {
        throw unsupported("its graph builder does not announce its per-layer embeddings");
    }
    if (stage.il0 > 0 && (in_graph(res.get_gf(), tokens) || in_graph(res.get_gf(), embd))) {
        throw unsupported("its later layers read the token embeddings again");
    }

    if (stage.il0 > 0) {
        allocate_inputs(res, tokens, embd);
    } else {
        allocate_inputs(res, nullptr, nullptr);
    }

    return graph;
}

const llama_model & model_of_graph() {
    return *model_built;
}

static void go_to_layer(const llm_graph_context & graph, int il) {
    if (!staged_memory_context::from(graph.mctx)) {
        return;
    }
    for (const auto & input : graph.res->inputs) {
        if (auto * by_layer = dynamic_cast<input_by_layer *>(input.get())) {
            by_layer->go_to(il);
        }
    }
}

// It is announced in front of the first layer: in a later stage before the graph is emptied.
static void hand_over_per_layer(const llm_graph_context & graph, ggml_tensor * cur) {
    if (cur->type != GGML_TYPE_F32 || !ggml_is_contiguous(cur) || cur->ne[0] != graph.hparams.n_embd_per_layer ||
            cur->ne[1] != graph.n_layer || cur->ne[2] != graph.n_tokens || cur->ne[3] != 1) {
        throw unsupported("its per-layer embeddings are not n_embd_per_layer numbers of each layer for each token");
    }
    if (graph.cparams.stage.il0 > 0) {
        make_input(cur);
        graph.res->add_input(std::make_unique<graph_input_per_layer>(cur, graph.n_embd));
        return;
    }
    ggml_set_name(cur, per_layer_name);
    ggml_set_output(cur);
    ggml_build_forward_expand(graph.gf, cur);
}

void on_tensor(const llm_graph_context & graph, ggml_tensor * cur, const char * name, int il) {
    const auto & stage = graph.cparams.stage;

    if (stage.partial() && strcmp(name, "inp_per_layer") == 0) {
        hand_over_per_layer(graph, cur);
        return;
    }
    if (strcmp(name, "l_out") != 0) {
        return;
    }

    if (stage.il0 > 0 && il == stage.il0 - 1) {
        begin_stage(graph, cur);
    }
    if (stage.ends_early() && il == stage.il1 - 1) {
        end_stage(graph, cur);
    }
    go_to_layer(graph, il + 1);
}

ggml_tensor * skip_attn(const llm_graph_context & graph, ggml_tensor * wo, ggml_tensor * q_cur, int il) {
    if (graph.cparams.stage.runs(il)) {
        return nullptr;
    }

    const int64_t n_out = wo ? wo->ne[1] : graph.hparams.n_embd_head_v(il)*graph.hparams.n_head(il);

    return ggml_new_tensor_2d(graph.ctx0, GGML_TYPE_F32, n_out, q_cur->ne[2]);
}

void add_weights(llm_graph_input_attn_k & input, const staged_memory::weights_of_sequences & weights, const llama_ubatch & ubatch) {
    add_to_mask(input.self_kq_mask, weights, &staged_memory::cell_weights::all, ubatch);
}

void add_weights(llm_graph_input_attn_kv & input, const staged_memory::weights_of_sequences & weights, const llama_ubatch & ubatch) {
    add_to_mask(input.self_kq_mask, weights, &staged_memory::cell_weights::all, ubatch);
}

void add_weights(llm_graph_input_attn_kv_iswa & input, const staged_memory::weights_of_sequences & weights, const llama_ubatch & ubatch) {
    add_to_mask(input.self_kq_mask,     weights, &staged_memory::cell_weights::all,     ubatch);
    add_to_mask(input.self_kq_mask_swa, weights, &staged_memory::cell_weights::windows, ubatch);
}

template <typename Input>
Input * staged_input(const llm_graph_context & graph, Input * (llm_graph_context::*build)() const) {
    const auto * mctx = staged_memory_context::from(graph.mctx);
    if (!mctx) {
        return nullptr;
    }

    // its own memory is that of the parts
    return static_cast<Input *>(graph.res->add_input(std::make_unique<graph_input_staged<Input>>(
            *mctx, build_parts(graph, *mctx, build), graph.hparams, graph.cparams, nullptr)));
}

template <typename Input>
Input * input_at(Input * input, int il) {
    auto * staged = dynamic_cast<graph_input_staged<Input> *>(input);
    return staged ? staged->at(il) : input;
}

template llm_graph_input_attn_k * staged_input(const llm_graph_context &, llm_graph_input_attn_k * (llm_graph_context::*)() const);
template llm_graph_input_attn_k * input_at(llm_graph_input_attn_k *, int);

template llm_graph_input_attn_kv * staged_input(const llm_graph_context &, llm_graph_input_attn_kv * (llm_graph_context::*)() const);
template llm_graph_input_attn_kv * input_at(llm_graph_input_attn_kv *, int);

template llm_graph_input_attn_kv_iswa * staged_input(const llm_graph_context &, llm_graph_input_attn_kv_iswa * (llm_graph_context::*)() const);
template llm_graph_input_attn_kv_iswa * input_at(llm_graph_input_attn_kv_iswa *, int);

} // namespace pyfastv
