// The process of generation.py, on the libraries of one folder: generation_rate MODEL.gguf THREADS. Answers a line "N" with
// the milliseconds a token of N tokens, one after the other.

#include "llama-cpp.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>

static double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int main(int argc, char ** argv) {
    if (argc != 3) {
        fprintf(stderr, "generation_rate MODEL.gguf THREADS\n");
        return 2;
    }
    constexpr int context_size = 512;

    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);

    const llama_model_ptr model(llama_model_load_from_file(argv[1], llama_model_default_params()));
    if (!model) {
        fprintf(stderr, "%s cannot be loaded\n", argv[1]);
        return 1;
    }
    auto params = llama_context_default_params();
    params.n_ctx     = context_size;
    params.n_threads = params.n_threads_batch = atoi(argv[2]);
    const llama_context_ptr context(llama_init_from_model(model.get(), params));
    if (!context) {
        fprintf(stderr, "no context\n");
        return 1;
    }
    const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model.get()));

    int n_past = 0;
    for (int n; std::cin >> n; ) {
        if (n_past + n > context_size) {
            llama_memory_clear(llama_get_memory(context.get()), false);
            n_past = 0;
        }
        const double begin = seconds();
        for (int i = 0; i < n; ++i, ++n_past) {
            llama_token token = (n_past*7919 + 1000) % n_vocab;
            if (llama_decode(context.get(), llama_batch_get_one(&token, 1))) {
                return 1;
            }
            llama_synchronize(context.get());
        }
        printf("%.5f\n", (seconds() - begin)*1e3/n);
        fflush(stdout);
    }
}
