// engine: loading and freeing

#include "runner/engine.h"

#include "runner/errors.h"
#include "runner/log.h"
#include "runner/model_file.h"

#include "ggml-backend.h"
#include "ggml.h"
#include "pyfastv_turbo.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <random>
#include <thread>

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace pyfastv {
namespace {

ggml_type parse_type(const std::string & name) {
    std::string known;
    for (const auto type : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_IQ4_NL, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1 }) {
        if (name == ggml_type_name(type)) {
            return type;
        }
        known += std::string(known.empty() ? "" : ", ") + ggml_type_name(type);
    }
    throw error(error_kind::option, "\"" + name + "\" is not a type for a KV cache; one of: " + known);
}

llama_flash_attn_type parse_flash_attn(const std::string & name) {
    if (name == "auto") { return LLAMA_FLASH_ATTN_TYPE_AUTO; }
    if (name == "on")   { return LLAMA_FLASH_ATTN_TYPE_ENABLED; }
    if (name == "off")  { return LLAMA_FLASH_ATTN_TYPE_DISABLED; }
    throw error(error_kind::option, "flash_attn = \"" + name + "\"; one of: auto, on, off");
}

std::string random_marker() {
    std::random_device device;
    return "<__media_" + std::to_string(device()) + std::to_string(device()) + "__>";
}

} // namespace

engine::engine(const engine_options & options_in) : options(options_in), media_marker(random_marker()), encoded(options_in.encoder_cache_bytes) {
    static std::once_flag once;
    std::call_once(once, llama_backend_init);

    // llama.cpp asserts these
    if (options.n_batch < 1 || options.n_ubatch < 1) {
        throw error(error_kind::option, "n_batch = " + std::to_string(options.n_batch) + ", n_ubatch = " +
                std::to_string(options.n_ubatch) + ": both must be at least 1");
    }

    if (options.n_threads <= 0) {
        options.n_threads = std::max(1u, std::thread::hardware_concurrency());
    }

    load_model();
    load_context();
    if (options.mmproj_path) {
        load_vision();
    }
}

engine::~engine() {
    vision.reset();
    ctx.reset();
    model.reset();

#ifdef __GLIBC__
    // glibc keeps freed buffers of up to 32 MB each; a closed runner has none
    malloc_trim(0);
#endif
}

void engine::load_model() {
    check_gguf(options.model_path);

    const log_scope log(options.verbose);

    auto params = llama_model_default_params();
    params.n_gpu_layers = options.n_gpu_layers;
    params.progress_callback_user_data = this;
    params.progress_callback = [](float progress, void * self) {
        const auto & callback = static_cast<engine *>(self)->options.progress;
        return !callback || callback(progress);
    };

    model.reset(llama_model_load_from_file(options.model_path.c_str(), params));
    if (!model) {
        throw error(error_kind::model, options.model_path + ": " + log.reason("cannot be loaded"));
    }
    vocab = llama_model_get_vocab(model.get());

    if (llama_model_has_encoder(model.get()) || !llama_model_has_decoder(model.get())) {
        throw error(error_kind::unsupported, options.model_path + ": is not a decoder-only language model");
    }
}

// llama.cpp would ask for the memory, and clear it, before it finds that there is not enough
void engine::check_memory(ggml_type type_k, ggml_type type_v) const {
    const auto   n_ctx  = options.n_ctx ? options.n_ctx : (uint32_t) llama_model_n_ctx_train(model.get());
    const double n_embd = (double) llama_model_n_embd(model.get())/llama_model_n_head(model.get())*llama_model_n_head_kv(model.get());
    const auto   bytes  = [&](ggml_type type) { return n_embd*ggml_type_size(type)/ggml_blck_size(type); };
    const double needed = n_layer()*(bytes(type_k) + bytes(type_v))*n_ctx;

    double all = 0;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        size_t free = 0, total = 0;
        ggml_backend_dev_memory(ggml_backend_dev_get(i), &free, &total);
        all += total;
    }

    if (all > 0 && needed > all) {
        const auto gb = [](double n) { return std::to_string((int64_t) (n/1e9 + 0.5)) + " GB"; };
        throw error(error_kind::out_of_memory, "the KV cache for n_ctx = " + std::to_string(n_ctx) + " tokens takes " + gb(needed) +
                ", this machine has " + gb(all) + " of memory: use a smaller n_ctx, or a quantized type_k and type_v");
    }
}

void engine::load_context() {
    const log_scope log(options.verbose);

    auto params = llama_context_default_params();
    params.n_ctx           = options.n_ctx;
    params.n_batch         = options.n_batch;
    params.n_ubatch        = options.n_ubatch;
    params.n_seq_max       = 1;
    params.n_threads       = options.n_threads;
    params.n_threads_batch = options.n_threads;
    params.flash_attn_type = parse_flash_attn(options.flash_attn);
    params.type_k          = parse_type(options.type_k);
    params.type_v          = parse_type(options.type_v);
    params.no_perf         = false;

    check_memory(params.type_k, params.type_v);

    params.abort_callback      = [](void * self) { return static_cast<engine *>(self)->stop_requested(); };
    params.abort_callback_data = this;

    ctx.reset(llama_init_from_model(model.get(), params));
    if (ctx) {
        // what this runner was asked for counts, not the environment's LLAMA_FASTV
        pyfastv_attach(ctx.get(), nullptr);
    } else {
        const auto reason = log.reason("no reason was given");
        const bool memory = reason.find("alloc") != std::string::npos || reason.find("memory") != std::string::npos;
        throw error(memory ? error_kind::out_of_memory : error_kind::option,
                "a context of n_ctx = " + std::to_string(options.n_ctx ? options.n_ctx : llama_model_n_ctx_train(model.get())) +
                " tokens cannot be made: " + reason + (memory ? " (a smaller n_ctx or a quantized type_k and type_v need less)" : ""));
    }
}

void engine::load_vision() {
    check_gguf(*options.mmproj_path);

    const log_scope log(options.verbose);

    auto params = mtmd_context_params_default();
    params.use_gpu         = options.n_gpu_layers != 0;
    params.print_timings   = false;
    params.n_threads       = options.n_threads;
    params.media_marker    = media_marker.c_str();
    params.flash_attn_type = parse_flash_attn(options.flash_attn);
    params.warmup          = false;
    params.cb_eval_user_data = this;
    params.cb_eval = [](ggml_tensor * tensor, bool ask, void * self) {
        // ask: stop the computation behind this node? Once a layer is often enough to ask whether to go on.
        return ask ? strncmp(tensor->name, "ffn_out", 7) == 0 : !static_cast<engine *>(self)->stop_requested();
    };

    vision.reset(mtmd_init_from_file(options.mmproj_path->c_str(), model.get(), params));
    if (!vision) {
        throw error(error_kind::model, *options.mmproj_path + ": cannot be used with " + options.model_path + ": " +
                log.reason("it is not an mmproj file, or belongs to another model"));
    }
    // as for the context
    pyfastv_turbo_attach(vision.get(), nullptr);

    if (!mtmd_support_vision(vision.get())) {
        throw error(error_kind::model, *options.mmproj_path + ": has no vision encoder");
    }
}

} // namespace pyfastv
