#include "graph/stage_graph.h"

#include "graph/stage.h"
#include "memory/staged_memory.h"
#include "schedule/schedule.h"

#include "llama-cparams.h"
#include "llama-graph.h"
#include "llama-hparams.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

#include "ggml-backend.h"
#include "ggml.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace pyfastv {
namespace {

// thrown through the builder at the end of a stage, caught in build_arch_graph()
struct stage_end {};

// did the builder announce the boundaries? one graph is built at a time on a thread
thread_local bool began = false;

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

// one attention input for each stage that the graph runs
class graph_input_attn_staged : public llm_graph_input_attn_kv {
public:
    graph_input_attn_staged(const llm_graph_context & graph, const staged_memory_context & mctx, const make_attn_inp & make_inp) :
        llm_graph_input_attn_kv(graph.hparams, graph.cparams, nullptr), k(mctx.k()) {
        for (int s = 0; s < n_stages; ++s) {
            if (const auto * part = mctx.part(s)) {
                parts[s] = make_inp(part);
            }
        }
    }

    llm_graph_input_attn_kv * at(int il) override {
        return parts[il < k ? 0 : 1].get();
    }

    void set_input(const llama_ubatch * ubatch) override {
        for (auto & part : parts) {
            if (part) {
                part->set_input(ubatch);
            }
        }
    }

    bool can_reuse(const llm_graph_params & params) override {
        const auto * mctx = staged_memory_context::from(params.mctx);
        if (!mctx || mctx->k() != k) {
            return false;
        }

        bool res = true;

        for (int s = 0; s < n_stages; ++s) {
            const auto * part = mctx->part(s);
            if (!part != !parts[s]) {
                return false;
            }
            if (part) {
                auto & inp = *parts[s];

                inp.mctx = part;

                res &= inp.self_k_idxs->ne[0]  == params.ubatch.n_tokens;
                res &= inp.self_kq_mask->ne[0] == part->get_n_kv();
                res &= inp.self_kq_mask->ne[1] == params.ubatch.n_tokens;
            }
        }

        return res;
    }

private:
    int32_t k;

    std::array<std::unique_ptr<llm_graph_input_attn_kv>, n_stages> parts;
};

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

void begin_stage(const llm_graph_context & graph, ggml_tensor * cur) {
    if (cur->type != GGML_TYPE_F32 || !ggml_is_contiguous(cur) ||
            cur->ne[0] != graph.n_embd || cur->ne[1] != graph.n_tokens || ggml_nelements(cur) != graph.n_embd*graph.n_tokens) {
        throw unsupported("the stream between its layers is not one row of n_embd numbers for each token");
    }

    ggml_graph_clear(graph.gf);

    cur->op        = GGML_OP_NONE;
    cur->view_src  = nullptr;
    cur->view_offs = 0;
    std::fill(std::begin(cur->src), std::end(cur->src), nullptr);
    ggml_set_input(cur);

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

    began = stage.il0 == 0;

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

void on_tensor(const llm_graph_context & graph, ggml_tensor * cur, const char * name, int il) {
    const auto & stage = graph.cparams.stage;

    if (!stage.partial() || strcmp(name, "l_out") != 0) {
        return;
    }
    if (stage.il0 > 0 && il == stage.il0 - 1) {
        begin_stage(graph, cur);
    }
    if (stage.ends_early() && il == stage.il1 - 1) {
        end_stage(graph, cur);
    }
}

ggml_tensor * skip_attn(const llm_graph_context & graph, ggml_tensor * wo, ggml_tensor * q_cur, int il) {
    if (graph.cparams.stage.runs(il)) {
        return nullptr;
    }

    const int64_t n_out = wo ? wo->ne[1] : graph.hparams.n_embd_head_v(il)*graph.hparams.n_head(il);

    return ggml_new_tensor_2d(graph.ctx0, GGML_TYPE_F32, n_out, q_cur->ne[2]);
}

std::unique_ptr<llm_graph_input_attn_kv> build_attn_inp(const llm_graph_context & graph, const make_attn_inp & make_inp) {
    const auto * mctx = staged_memory_context::from(graph.mctx);
    if (!mctx) {
        return nullptr;
    }

    return std::make_unique<graph_input_attn_staged>(graph, *mctx, make_inp);
}

} // namespace pyfastv
