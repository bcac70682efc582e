#pragma once

#include "llama/call_sites.h"
#include "stages/scopes.h"
#include "stages/staged_memory.h"

#include "llama-graph.h"

#include "ggml.h"

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

// What the layers of a graph read of a memory with stages: llama.cpp's own input, built once for each stage.
namespace pyfastv {

// Adds what cells count for to the masks of the input, in the rows of each sequence; what is masked stays so.
void add_weights(llm_graph_input_attn_k       & input, const staged_memory::weights_of_sequences & weights, const llama_ubatch & ubatch);
void add_weights(llm_graph_input_attn_kv      & input, const staged_memory::weights_of_sequences & weights, const llama_ubatch & ubatch);
void add_weights(llm_graph_input_attn_kv_iswa & input, const staged_memory::weights_of_sequences & weights, const llama_ubatch & ubatch);

// one input for each stage that the graph runs
template <typename Input>
class graph_input_staged : public Input {
public:
    using parts_t = std::vector<std::unique_ptr<Input>>;

    // a part that is null does not run. base: what an Input is made with
    template <typename... Base>
    graph_input_staged(const staged_memory_context & mctx, parts_t parts, const Base &... base) :
        Input(base...), mctx(&mctx), parts(std::move(parts)) {}

    Input * at(int il) const { return parts[mctx->stage_of(il)].get(); }

    void set_input(const llama_ubatch * ubatch) override {
        for (size_t s = 0; s < parts.size(); ++s) {
            if (parts[s]) {
                parts[s]->set_input(ubatch);
                if (s > 0) {
                    add_weights(*parts[s], mctx->stages().weights((int) s), *ubatch);
                }
            }
        }
    }

    bool can_reuse(const llm_graph_params & params) override {
        const auto * next = staged_memory_context::from(params.mctx);
        if (!next || next->n_stages() != (int) parts.size() || !(params.cparams.stage == this->cparams.stage)) {
            return false;
        }
        for (size_t s = 0; s < parts.size(); ++s) {
            if (!next->part(s) != !parts[s]) {
                return false;
            }
        }

        mctx = next;

        auto of_part = params;
        bool res     = true;

        for (size_t s = 0; s < parts.size(); ++s) {
            if (parts[s]) {
                of_part.mctx = mctx->part(s);
                res &= parts[s]->can_reuse(of_part);
            }
        }

        return res;
    }

protected:
    const staged_memory_context * mctx;

    parts_t parts;
};

// Builders ask such an input anew in every layer for what is that layer's.
struct input_by_layer {
    virtual ~input_by_layer() = default;

    virtual void go_to(int il) = 0; // the layer that is built next
};

// what the builder's own function builds for one memory
template <typename Input>
std::unique_ptr<Input> build_part(const llm_graph_context & graph, const llama_memory_context_i & part, Input * (llm_graph_context::*build)() const) {
    const scoped_value<const llama_memory_context_i *> scope(const_cast<llm_graph_context &>(graph).mctx, &part);

    auto & inputs = graph.res->inputs;
    Input * input = (graph.*build)();
    GGML_ASSERT(inputs.back().get() == input);
    inputs.back().release();
    inputs.pop_back();

    return std::unique_ptr<Input>(input);
}

// and for that of each stage
template <typename Input>
typename graph_input_staged<Input>::parts_t build_parts(const llm_graph_context & graph, const staged_memory_context & mctx,
        Input * (llm_graph_context::*build)() const) {
    typename graph_input_staged<Input>::parts_t res(mctx.n_stages());
    for (size_t s = 0; s < res.size(); ++s) {
        if (const auto * part = mctx.part(s)) {
            res[s] = build_part(graph, *part, build);
        }
    }
    return res;
}

} // namespace pyfastv
