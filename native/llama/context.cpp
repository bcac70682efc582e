#include "llama/context.h"

#include "stages/scopes.h"

#include "llama-batch.h"
#include "llama-context.h"
#include "llama-model.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

namespace pyfastv {

staged_decode *       context_access::stages_of(llama_context & ctx)       { return ctx.fastv.get(); }
const staged_decode * context_access::stages_of(const llama_context & ctx) { return ctx.fastv.get(); }

void context_access::set_stages(staged_decode_ptr stages) const {
    ctx.fastv = std::move(stages);
}

//
// model and parameters
//

const llama_model & context_access::model() const { return ctx.model; }

int32_t  context_access::n_layer()        const { return (int32_t) ctx.model.hparams.n_layer(); }
int64_t  context_access::n_vocab()        const { return ctx.model.vocab.n_tokens(); }
uint32_t context_access::n_pos_per_embd() const { return ctx.model.hparams.n_pos_per_embd(); }

row_width context_access::width() const {
    const auto & hparams = ctx.model.hparams;

    return { hparams.n_embd, (int64_t) hparams.n_embd_per_layer*hparams.n_layer() };
}

uint32_t context_access::n_ctx()     const { return ctx.cparams.n_ctx_seq; }
uint32_t context_access::n_ubatch()  const { return ctx.cparams.n_ubatch; }
uint32_t context_access::n_seq_max() const { return ctx.cparams.n_seq_max; }
bool     context_access::unified()   const { return ctx.cparams.kv_unified; }
bool     context_access::causal()    const { return ctx.cparams.causal_attn; }

void context_access::check_params() const {
    const auto & params = ctx.cparams;

    // llama_batch_allocr::split_equal() asserts it
    const uint64_t least = (uint64_t) params.n_rs_seq + 2;
    if (params.n_rs_seq > 0 && params.n_ubatch < least) {
        throw std::runtime_error("n_rs_seq = " + std::to_string(params.n_rs_seq) + " needs an n_ubatch of at least " +
                std::to_string(least) + ": it is " + std::to_string(params.n_ubatch));
    }
}

const char * context_access::unsupported_output() const {
    const auto & inputs = ctx.cparams.embeddings_layer_inp;

    if (ctx.cparams.embeddings || !ctx.sampling.samplers.empty()) {
        return "the context outputs embeddings or samples in its graph, which this version does not do in stages";
    }
    if (ctx.cparams.embeddings_nextn || std::find(inputs.begin(), inputs.end(), true) != inputs.end()) {
        return "the context outputs hidden rows for a draft model, which this version does not do in stages";
    }
    return nullptr;
}

//
// memory
//

const llama_memory_i * context_access::memory_of(const llama_context & ctx) { return ctx.get_memory(); }

cache_layout context_access::layout() const { return stage_cache::layout_of(*ctx.memory, ctx.model); }

std::unique_ptr<stage_cache> context_access::make_cache(cache_layout layout, int32_t il0, int32_t il1, uint32_t n_cells) const {
    return stage_cache::make(ctx.model, ctx.cparams, layout, il0, il1, n_cells);
}

void context_access::set_memory(std::unique_ptr<llama_memory_i> memory) const {
    ctx.synchronize();
    ctx.memory = std::move(memory);
}

//
// computing
//

ggml_backend_sched_eval_callback context_access::eval_callback()      const { return ctx.cparams.cb_eval; }
void *                           context_access::eval_callback_data() const { return ctx.cparams.cb_eval_user_data; }

void context_access::allow_gaps() const { ctx.balloc->gaps = true; }

void context_access::reserve() const {
    try {
        ctx.sched_reserve();
    } catch (...) {
        forget_reservation();
        throw;
    }
}

void context_access::forget_reservation() const noexcept { ctx.sched_need_reserve = true; }

void context_access::reserve_stage(const stage & layers, llama_memory_context_i & mctx) const {
    const uint32_t n_tokens  = std::min(ctx.cparams.n_ctx, ctx.cparams.n_ubatch);
    const uint32_t n_outputs = std::min(n_tokens, ctx.cparams.n_outputs_max);

    const scoped_value<stage> scope(ctx.cparams.stage, layers);

    if (!ctx.graph_reserve(n_tokens, 1, n_outputs, &mctx)) {
        throw std::runtime_error("failed to allocate the compute buffers of a stage");
    }
}

void context_access::note_buffer_sizes() const {
    for (size_t i = 0; i < ctx.backend_ptrs.size(); ++i) {
        ctx.backend_buf_exp_size[i] = ggml_backend_sched_get_buffer_size(ctx.sched.get(), ctx.backend_ptrs[i]);
    }
}

void context_access::update_memory() const { ctx.memory_update(false); }

bool context_access::reserve_outputs(uint32_t n_outputs) const { return ctx.output_reserve(n_outputs) >= n_outputs; }

ggml_status context_access::run(const stage & layers, const llama_ubatch & ubatch, llama_memory_context_i & mctx,
        ggml_backend_sched_eval_callback callback, void * callback_data, llm_graph_result *& res) const {
    const scoped_value<stage> scope(ctx.cparams.stage, layers);

    const scoped_value<ggml_backend_sched_eval_callback> eval(ctx.cparams.cb_eval, callback);
    const scoped_value<void *>                           data(ctx.cparams.cb_eval_user_data, callback_data);

    ggml_status status = GGML_STATUS_FAILED;

    res = ctx.process_ubatch(ubatch, LLM_GRAPH_TYPE_DEFAULT, &mctx, status);
    ggml_backend_sched_synchronize(ctx.sched.get());

    return status;
}

context_access::later_rows::later_rows(const context_access & access, bool causal, uint32_t n_outputs) :
    causal(access.ctx.cparams.causal_attn, causal), n_outputs(access.ctx.n_outputs, n_outputs) {}

void context_access::synchronize() const { ctx.synchronize(); }

bool context_access::abort_requested() const { return ctx.abort_callback && ctx.abort_callback(ctx.abort_callback_data); }

ggml_backend_t context_access::backend_cpu() const { return ctx.backend_cpu; }

//
// outputs
//

float * context_access::logits_of(size_t rank) const { return ctx.logits.data + rank*n_vocab(); }

void context_access::read_logits(llm_graph_result & res, int32_t row, float * to) const {
    const size_t size = n_vocab()*sizeof(float);

    ggml_backend_tensor_get(res.get_logits(), to, row*size, size);
}

void context_access::spoil_logits() const {
    std::fill_n(ctx.logits.data, ctx.logits.size, std::numeric_limits<float>::quiet_NaN());
}

void context_access::set_outputs(const std::vector<int32_t> & indices) const {
    std::fill(ctx.output_ids.begin(), ctx.output_ids.end(), -1);
    for (size_t i = 0; i < indices.size(); ++i) {
        ctx.output_ids[indices[i]] = (int32_t) i;
    }
    ctx.n_outputs = (int32_t) indices.size();
}

void context_access::count_time(int64_t us) const { ctx.t_p_eval_us += us; }

context_access::uninterrupted::uninterrupted(const context_access & access) :
    ctx(access.ctx), callback(ctx.abort_callback), data(ctx.abort_callback_data) {
    ctx.set_abort_callback(nullptr, nullptr);
}

context_access::uninterrupted::~uninterrupted() { ctx.set_abort_callback(callback, data); }

//
// the model
//

std::string arch_name_of(const llama_context & ctx) { return ctx.get_model().arch_name(); }

bool token_embedding(const llama_model & model, int32_t token, float * out) {
    const auto * table = model.tok_embd;
    if (!table || token < 0 || token >= table->ne[1]) {
        return false;
    }

    std::vector<uint8_t> row(ggml_row_size(table->type, table->ne[0]));
    ggml_backend_tensor_get(table, row.data(), token*table->nb[1], row.size());

    if (table->type == GGML_TYPE_F32) {
        std::copy_n(row.data(), row.size(), reinterpret_cast<uint8_t *>(out));
        return true;
    }
    const auto to_float = ggml_get_type_traits(table->type)->to_float;
    if (to_float) {
        to_float(row.data(), out, table->ne[0]);
    }
    return to_float != nullptr;
}

} // namespace pyfastv
