// One random model of an architecture, made by the fixture of llama.cpp's own tests, in stages and without. architectures.py
// builds and runs this, a process a model.
//
//     architectures list              every variant that has a fixture, one a line: NAME dense|moe
//     architectures NAME dense|moe    what came of it: "layers N", then "refused: WHY", or a line a cut:
//                                     "cut K: exact, dropping changes X" (largest logit difference)
//                                     "cut K: differs by X", "cut K: refused: WHY", "cut K: fails: WHY"

#include "gguf.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"
#include "llama-arch.h"
#include "llama-cpp.h"
#include "llama-model-saver.h"
#include "llama.h"
#include "pyfastv.h"

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "fixture.inc" // get_gguf_ctx() and which variants there are, of the pin's tests/test-llama-archs.cpp

namespace {

constexpr int n_visual = 24, n_columns = 6;

void quiet(ggml_log_level, const char *, void *) {}

bool go_on(float, void *) { return true; }

void random_values(ggml_tensor * tensor, void *) {
    const std::string name = ggml_get_name(tensor);

    std::mt19937                    random(std::hash<std::string>()(name));
    std::normal_distribution<float> normal(0.0f, 0.1f);

    const bool is_norm  = name.find("norm") != std::string::npos && name.find(".weight") != std::string::npos;
    const bool is_decay = name.find("ssm_a") != std::string::npos && name.find("ssm_alpha") == std::string::npos;

    std::vector<float> values(ggml_nelements(tensor));
    for (auto & value : values) {
        value = normal(random);
        value = is_norm ? 1.0f + value : is_decay ? -std::fabs(value) : value;
    }
    if (tensor->type == GGML_TYPE_F16) {
        std::vector<ggml_fp16_t> halves(values.size());
        ggml_fp32_to_fp16_row(values.data(), halves.data(), (int64_t) values.size());
        ggml_backend_tensor_set(tensor, halves.data(), 0, ggml_nbytes(tensor));
    } else if (tensor->type == GGML_TYPE_F32) {
        ggml_backend_tensor_set(tensor, values.data(), 0, ggml_nbytes(tensor));
    } else {
        throw std::runtime_error("the fixture has a tensor of another type");
    }
}

llama_context_ptr make_context(llama_model * model) {
    auto params = llama_context_default_params();
    params.n_ctx = params.n_batch = 256;
    params.n_ubatch  = 64;
    params.n_threads = params.n_threads_batch = 1;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED; // with it ggml picks its kernel by the number of rows
    params.type_k = params.type_v = GGML_TYPE_F32;
    params.kv_unified = true;
    params.swa_full   = true;
    return llama_context_ptr(llama_init_from_model(model, params));
}

// a text, a picture, a question and two tokens; the logits behind the last three
class conversation {
public:
    conversation(llama_context * ctx, const llama_model * model) :
        ctx(ctx), n_vocab(llama_vocab_n_tokens(llama_model_get_vocab(model))), n_embd(llama_model_n_embd_inp(model)) {
        const auto rope = llama_model_rope_type(model);
        is_flat = rope == LLAMA_ROPE_TYPE_MROPE || rope == LLAMA_ROPE_TYPE_IMROPE;

        text(3);
        picture();
        text(4);
        read();
        for (int i = 0; i < 2; ++i) {
            text(1);
            read();
        }
    }

    std::vector<float> logits;

private:
    void text(int n) {
        std::uniform_int_distribution<llama_token> words(3, 120);

        std::vector<llama_token> tokens(n);
        std::vector<llama_pos>   pos(n);
        std::vector<int8_t>      output(n, 0);
        for (int i = 0; i < n; ++i) {
            tokens[i] = words(random);
            pos[i]    = at++;
        }
        output[n - 1] = 1;

        llama_batch batch = {};
        batch.n_tokens = n;
        batch.token    = tokens.data();
        batch.pos      = pos.data();
        batch.logits   = output.data();
        decode(batch);
    }

    void picture() {
        std::normal_distribution<float> normal;

        std::vector<float>     rows((size_t) n_visual*n_embd);
        std::vector<llama_pos> pos((is_flat ? 4 : 1)*n_visual, 0);
        std::vector<int8_t>    output(n_visual, 0);
        for (auto & value : rows) {
            value = normal(random);
        }
        for (int i = 0; i < n_visual; ++i) {
            pos[i] = is_flat ? at : at + i;
            if (is_flat) {
                pos[n_visual + i]   = at + i/n_columns;
                pos[2*n_visual + i] = at + i%n_columns;
            }
        }
        at += is_flat ? n_columns : n_visual;

        pyfastv_begin_media(ctx, PYFASTV_MEDIA_IMAGE, "p", n_columns, n_visual/n_columns);
        llama_batch batch = {};
        batch.n_tokens = n_visual;
        batch.embd     = rows.data();
        batch.pos      = pos.data();
        batch.logits   = output.data();
        decode(batch);
    }

    void decode(const llama_batch & batch) {
        if (const int status = llama_decode(ctx, batch); status != 0) {
            throw std::runtime_error("llama_decode() returns " + std::to_string(status));
        }
    }

    void read() {
        const float * row = llama_get_logits_ith(ctx, -1);
        if (!row) {
            throw std::runtime_error("there are no logits");
        }
        logits.insert(logits.end(), row, row + n_vocab);
    }

    llama_context * ctx;
    const int       n_vocab, n_embd;
    bool            is_flat;
    llama_pos       at = 0;
    std::mt19937    random {1};
};

float difference(const std::vector<float> & a, const std::vector<float> & b) {
    float res = 0.0f;
    for (size_t i = 0; i < a.size(); ++i) {
        res = std::max(res, std::fabs(a[i] - b[i]));
    }
    return res;
}

llama_context_ptr staged(llama_model * model, int k, const char * rule) {
    auto       ctx  = make_context(model);
    const auto spec = "k=" + std::to_string(k) + "," + rule;

    pyfastv_params params = {};
    params.size = sizeof(params);
    if (pyfastv_parse(spec.c_str(), llama_model_n_layer(model), &params) != PYFASTV_OK || pyfastv_attach(ctx.get(), &params) != PYFASTV_OK) {
        printf("cut %d: refused: %s\n", k, pyfastv_last_error());
        return nullptr;
    }
    return ctx;
}

void try_cut(llama_model * model, int k, const std::vector<float> & stock) {
    if (const char * reason = pyfastv_unsupported_layer(model, k)) {
        printf("cut %d: refused: %s\n", k, reason);
        return;
    }
    const auto whole = staged(model, k, "drop=0,score=last");
    if (!whole) {
        return;
    }
    const conversation undropped(whole.get(), model);
    if (memcmp(undropped.logits.data(), stock.data(), stock.size()*sizeof(float)) != 0) {
        printf("cut %d: differs by %g\n", k, difference(undropped.logits, stock));
        return;
    }
    const auto half = staged(model, k, "drop=0.5,score=last,pick=top-k");
    if (!half) {
        return;
    }
    const conversation dropped(half.get(), model);
    if (const int n = pyfastv_get_kept(half.get(), 0, 0, nullptr, 0); n != n_visual/2) {
        printf("cut %d: fails: %d of %d rows are kept\n", k, n, n_visual);
        return;
    }
    printf("cut %d: exact, dropping changes %g\n", k, difference(dropped.logits, stock));
}

void try_variant(llm_arch arch, bool moe) {
    const auto metadata = get_gguf_ctx(arch, moe);

    ggml_backend_dev_t devices[] = { nullptr };
    auto params = llama_model_default_params();
    params.progress_callback = go_on;
    params.devices           = devices;

    const llama_model_ptr model(llama_model_init_from_user(metadata.get(), random_values, nullptr, params));
    if (!model) {
        throw std::runtime_error("the fixture's model cannot be made");
    }
    printf("layers %d\n", llama_model_n_layer(model.get()));
    if (const char * reason = pyfastv_unsupported_reason(model.get())) {
        printf("refused: %s\n", reason);
        return;
    }
    const auto ctx = make_context(model.get());
    if (!ctx) {
        throw std::runtime_error("stock llama.cpp makes no context");
    }
    const conversation stock(ctx.get(), model.get());
    if (!std::all_of(stock.logits.begin(), stock.logits.end(), [](float x) { return std::isfinite(x); })) {
        throw std::runtime_error("stock llama.cpp's logits are no numbers");
    }
    for (int k = 1; k < llama_model_n_layer(model.get()); ++k) {
        try {
            try_cut(model.get(), k, stock.logits);
        } catch (const std::exception & err) {
            printf("cut %d: fails: %s\n", k, err.what());
        }
    }
}

} // namespace

int main(int argc, char ** argv) {
    llama_log_set(quiet, nullptr);
    llama_backend_init();

    for (const auto arch : llm_arch_all()) {
        const std::string name = llm_arch_name(arch);
        if (arch == LLM_ARCH_UNKNOWN || arch == LLM_ARCH_CLIP || !arch_supported(arch)) {
            continue;
        }
        for (const bool moe : { false, true }) {
            if (moe ? !moe_implemented(arch) : moe_mandatory(arch)) {
                continue;
            }
            const char * kind = moe ? "moe" : "dense";
            if (argc == 2 && strcmp(argv[1], "list") == 0) {
                printf("%s %s\n", name.c_str(), kind);
            } else if (argc == 3 && name == argv[1] && strcmp(kind, argv[2]) == 0) {
                try {
                    try_variant(arch, moe);
                } catch (const std::exception & err) {
                    printf("no model: %s\n", err.what());
                }
                return 0;
            }
        }
    }
    return argc == 2 ? 0 : 2;
}
