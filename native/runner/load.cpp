#include "runner/load.h"

#include "runner/errors.h"
#include "runner/log.h"
#include "runner/model_file.h"
#include "runner/rehearsal.h"

#include "settings/text.h"

#include "pyfastv.h"
#include "pyfastv_skip.h"
#include "pyfastv_turbo.h"

#include "ggml-backend.h"
#include "ggml.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <random>

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

std::string meta_of(const llama_model * model, const std::string & key) {
    char buf[64];
    return llama_model_meta_val_str(model, key.c_str(), buf, sizeof(buf)) < 0 ? "" : buf;
}

// llama.cpp looks at it where flash attention is on. Elsewhere keys that are less than a block would count as nothing.
void check_blocks(const llama_model * model, const engine_options & options, ggml_type type_k) {
    if (options.flash_attn != "off" || !ggml_is_quantized(type_k)) {
        return;
    }
    const auto    given  = whole_in(meta_of(model, meta_of(model, "general.architecture") + ".attention.key_length"));
    const int32_t n_head = std::max(1, llama_model_n_head(model));
    const int64_t size   = given ? *given : llama_model_n_embd(model)/n_head;
    const int64_t block  = ggml_blck_size(type_k);
    if (size % block != 0) {
        throw error(error_kind::option, "type_k = \"" + options.type_k + "\" has blocks of " + std::to_string(block) +
                ", which the model's heads of " + std::to_string(size) + " numbers are no multiple of: use f16, bf16 or f32");
    }
}

std::string describe(context_size size, bool from_model) {
    return "n_ctx = " + std::to_string(size.n_ctx/size.n_seq_max) + " tokens" + (from_model ? ", by the model's context_length," : "") +
        (size.n_seq_max > 1 ? " in each of " + std::to_string(size.n_seq_max) + " slots" : "");
}

// llama.cpp would ask for the memory, and clear it, before it finds that there is not enough
void check_memory(const llama_model * model, context_size size, bool from_model, ggml_type type_k, ggml_type type_v) {
    const double n_embd = (double) llama_model_n_embd(model)/llama_model_n_head(model)*llama_model_n_head_kv(model);
    const auto   bytes  = [&](ggml_type type) { return n_embd*ggml_type_size(type)/ggml_blck_size(type); };
    const double needed = llama_model_n_layer(model)*(bytes(type_k) + bytes(type_v))*size.n_ctx;

    double all = 0;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        size_t free = 0, total = 0;
        ggml_backend_dev_memory(ggml_backend_dev_get(i), &free, &total);
        all += total;
    }

    if (all > 0 && needed > all) {
        const auto gb = [](double n) { return std::to_string((int64_t) (n/1e9 + 0.5)) + " GB"; };
        throw error(error_kind::out_of_memory, "the KV cache for " + describe(size, from_model) + " takes " + gb(needed) +
                ", this machine has " + gb(all) + " of memory: use a smaller n_ctx" + (size.n_seq_max > 1 ? ", fewer slots" : "") +
                ", or a quantized type_k and type_v");
    }
}

} // namespace

std::string random_marker() {
    std::random_device device;
    return "<__media_" + std::to_string(device()) + std::to_string(device()) + "__>";
}

llama_model_ptr load_model(const engine_options & options) {
    static std::once_flag once;
    std::call_once(once, llama_backend_init);

    check_model_file(options.model_path);

    const log_scope log(options.verbose);

    auto params = llama_model_default_params();
    params.n_gpu_layers = (int32_t) options.n_gpu_layers;
    params.progress_callback_user_data = const_cast<engine_options *>(&options);
    params.progress_callback = [](float progress, void * data) {
        const auto & callback = static_cast<const engine_options *>(data)->progress;
        return !callback || callback(progress);
    };

    llama_model_ptr model(llama_model_load_from_file(options.model_path.c_str(), params));
    if (!model) {
        throw log.failure(error_kind::model, options.model_path, "cannot be loaded");
    }
    if (llama_model_has_encoder(model.get()) || !llama_model_has_decoder(model.get())) {
        throw error(error_kind::unsupported, options.model_path + ": is not a decoder-only language model");
    }
    return model;
}

llama_context_ptr make_context(llama_model * model, const engine_options & options, context_size size, const interrupt_fn & stop) {
    const log_scope log(options.verbose);

    const bool from_model = options.n_ctx == 0;

    check_whole("n_ctx", size.n_ctx, 1, max_n_ctx);

    auto params = llama_context_default_params();
    params.n_ctx           = size.n_ctx;
    params.n_batch         = (uint32_t) options.n_batch;
    params.n_ubatch        = (uint32_t) options.n_ubatch;
    params.n_seq_max       = size.n_seq_max;
    params.kv_unified      = size.n_seq_max > 1;
    params.n_threads       = (int32_t) options.n_threads;
    params.n_threads_batch = (int32_t) options.n_threads_batch;
    params.flash_attn_type = parse_flash_attn(options.flash_attn);
    params.type_k          = parse_type(options.type_k);
    params.type_v          = parse_type(options.type_v);
    params.no_perf         = false;

    check_memory(model, size, from_model, params.type_k, params.type_v);
    check_blocks(model, options, params.type_k);

    params.abort_callback      = asks_interrupt;
    params.abort_callback_data = const_cast<interrupt_fn *>(&stop);

    llama_context_ptr ctx(llama_init_from_model(model, params));
    if (!ctx) {
        const auto reason = log.reason("no reason was given");
        const bool memory = reason.find("alloc") != std::string::npos || reason.find("memory") != std::string::npos;
        throw error(memory ? error_kind::out_of_memory : error_kind::option,
                "a context of " + describe(size, from_model) + " cannot be made: " + reason +
                (memory ? " (a smaller n_ctx or a quantized type_k and type_v need less)" : ""));
    }
    pyfastv_attach(ctx.get(), nullptr);
    rehearse(ctx.get(), options, stop);

    return ctx;
}

mtmd_context_ptr load_vision(const llama_model * model, const engine_options & options, const std::string & marker, const interrupt_fn & stop) {
    check_mmproj_file(*options.mmproj_path);

    const log_scope log(options.verbose);

    auto params = mtmd_context_params_default();
    params.use_gpu         = options.n_gpu_layers != 0;
    params.print_timings   = false;
    params.n_threads       = (int32_t) options.n_threads_batch;
    params.media_marker    = marker.c_str();
    params.flash_attn_type = parse_flash_attn(options.flash_attn);
    params.warmup          = false;
    params.cb_eval_user_data = const_cast<interrupt_fn *>(&stop);
    params.cb_eval = [](ggml_tensor * tensor, bool ask, void * data) {
        if (rehearses()) {
            return rehearsal_goes_on(ask);
        }
        // ask: stop the computation behind this node? Once a layer is often enough to ask whether to go on.
        return ask ? strncmp(tensor->name, "ffn_out", 7) == 0 : !(*static_cast<const interrupt_fn *>(data))();
    };

    mtmd_context_ptr vision(mtmd_init_from_file(options.mmproj_path->c_str(), model, params));
    if (!vision) {
        throw log.failure(error_kind::model, *options.mmproj_path + ": cannot be used with " + options.model_path,
                "it is not an mmproj file, or belongs to another model");
    }
    pyfastv_turbo_attach(vision.get(), nullptr);
    pyfastv_skip_attach (vision.get(), nullptr);

    if (!mtmd_support_vision(vision.get())) {
        throw error(error_kind::model, *options.mmproj_path + ": has no vision encoder (clip.has_vision_encoder)");
    }
    rehearse(vision.get(), model, options, marker);

    return vision;
}

} // namespace pyfastv
