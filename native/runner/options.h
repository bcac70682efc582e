#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace pyfastv {

// cells of a context: llama.cpp rounds them up to 256, and counts them in an int32
constexpr int64_t max_n_ctx = (int64_t) INT32_MAX + 1 - 256;

// Called often from long computations; true: stop as soon as possible.
using interrupt_fn = std::function<bool()>;

struct engine_options {
    std::string                model_path;
    std::optional<std::string> mmproj_path;        // none: text only
    int64_t                    n_slots      = 1;   // requests at once
    int64_t                    n_ctx        = 0;   // of each slot; 0: the model's own
    int64_t                    n_batch      = 2048;
    int64_t                    n_ubatch     = 512;
    int64_t                    n_threads    = 0;   // 0: one for each core
    int64_t                    n_gpu_layers = -1;  // -1: all
    std::string                flash_attn   = "auto"; // "auto", "on", "off"
    std::string                type_k       = "f16";  // ggml type of the K cache
    std::string                type_v       = "f16";
    int64_t                    encoder_cache_bytes = 0;
    bool                       verbose      = false;

    std::function<bool(float)> progress;  // 0..1 while loading; false: stop
    interrupt_fn               interrupt;
};

// llama.cpp's samplers, in the order of llama-cpp-python: grammar, penalties, top-k, typical, top-p, min-p, temperature
struct sampling_options {
    int64_t                    max_tokens        = -1; // -1: until the context is full
    float                      temperature       = 0;  // 0: greedy
    int64_t                    top_k             = 40; // 0, -1: all
    float                      top_p             = 0.95f;
    float                      min_p             = 0.05f;
    float                      typical_p         = 1;
    float                      repeat_penalty    = 1;
    int64_t                    repeat_last_n     = 64; // -1: the whole context
    float                      frequency_penalty = 0;
    float                      presence_penalty  = 0;
    int64_t                    seed              = UINT32_MAX; // UINT32_MAX: random
    std::optional<std::string> grammar;                        // GBNF
};

// Throw error(option) with the value and its limits: native code takes what comes from outside, too.
void check_options(const engine_options & options);
void check_options(const sampling_options & options);
void check_whole(const char * name, int64_t value, int64_t low, int64_t high);

// n_threads, or as many as the machine has
int32_t threads_of(const engine_options & options);

// RGB, 3 bytes a pixel, rows from top to bottom
struct image {
    uint32_t        width;
    uint32_t        height;
    const uint8_t * rgb; // [height, width, 3]
    std::string     id;  // the same for the same pixels and size; one for all frames of a video
    int32_t         frame = 0; // its number in its video, whose frames are slices of one picture
};

// What makes the pictures of a request cheaper before the language model; empty: nothing.
struct picture_options {
    std::string turbo;   // the language of pyfastv_turbo_parse()
    std::string reducer; // the language of parse_reducer() (settings/reducer.h)
};

struct run_report {
    int64_t prompt_tokens     = 0; // the picture's included
    int64_t cached_tokens     = 0; // of those, the ones that were in the context already
    int64_t visual_tokens     = 0; // those that enter the language model
    int64_t encoded_tokens    = 0; // those that the encoder makes
    int64_t patches           = 0; // what it would make without Turbo
    int64_t recalled_tokens   = 0; // visual tokens that this prompt brought back to the later layers
    int64_t pictures_encoded    = 0;
    int64_t pictures_from_cache = 0;
    int64_t generated_tokens  = 0;
    double  encode_ms         = 0; // vision encoder and projector
    double  reduce_ms         = 0; // between encoder and language model
    double  full_ms           = 0; // prompt rows that ran through every layer at once
    double  stage0_ms         = 0;
    double  choose_ms         = 0;
    double  later_ms          = 0;
    double  generate_ms       = 0;
    double  first_token_ms    = 0; // from the start of prefill() to the first sampled token
    int32_t graphs_reused     = 0;

    // one entry a stage
    std::vector<int32_t> first_layers;
    std::vector<int64_t> visual_in_stage; // of visual_tokens, those in its KV cache
    std::vector<size_t>  kv_bytes_used;
    std::vector<size_t>  kv_bytes_allocated;

    size_t kv_bytes_used_stock      = 0; // what stock llama.cpp would use
    size_t kv_bytes_allocated_stock = 0;
    size_t archive_bytes            = 0; // of rows, scores and cosines kept for recall and for choosing again
};

} // namespace pyfastv
