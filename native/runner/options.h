#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace pyfastv {

// cells of a context: llama.cpp rounds them up to 256, and counts them in an int32
constexpr int64_t max_n_ctx = (int64_t) INT32_MAX + 1 - 256;

// most tokens of a slot where nobody says: what models are trained for now may be more than there is memory for
constexpr int64_t default_n_ctx = 8192;

// Called often from long computations; true: stop as soon as possible.
using interrupt_fn = std::function<bool()>;

struct engine_options {
    std::string                model_path;
    std::optional<std::string> mmproj_path;        // none: text only
    int64_t                    n_slots      = 1;   // requests at once
    int64_t                    n_ctx        = 0;   // tokens of each slot; 0: what the model was trained for, at most default_n_ctx
    int64_t                    n_batch      = 2048;
    int64_t                    n_ubatch     = 512;
    int64_t                    n_threads    = 0;   // 0: usable_cores()
    int64_t                    n_threads_batch = 0; // of prompts and pictures; 0: n_threads
    int64_t                    n_gpu_layers = -1;  // -1: all
    std::string                flash_attn   = "auto"; // "auto", "on", "off"
    std::string                type_k       = "f16";  // ggml type of the K cache
    std::string                type_v       = "f16";
    int64_t                    encoder_cache_bytes = 0;
    std::optional<std::string> encoder_cache_dir;            // of files (runner/encoder_files.h); none: memory alone
    std::string                encoder_cache_made_by;        // of the files: all that rows depend on but the picture
    int64_t                    encoder_cache_disk_bytes = 0; // most of the folder
    int64_t                    checkpoint_bytes    = 0; // of states of recurrent layers that slots go back to; 0: none
    bool                       verbose      = false;

    std::function<bool(float)> progress;  // 0..1 while loading; false: stop
    interrupt_fn               interrupt;
};

// llama.cpp's samplers, in the order of llama-cpp-python: grammar, logit bias, penalties, top-k, typical, top-p, min-p, temperature
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
    std::vector<std::string>   grammar_triggers;               // expressions: it holds from what one of them finds; empty: at once
    std::vector<std::string>   preserved;                      // names of control tokens that are text of the answer
    std::vector<std::pair<int32_t, float>> logit_bias; // (token, what is added to its logit)
    bool                       ignore_eos        = false; // no token ends the answer
    bool                       skip_special_tokens = true; // control tokens are no text; else they are spelt
};

// Throw error(option) with the value and its limits: native code takes what comes from outside, too.
void check_options(const engine_options & options);
void check_options(const sampling_options & options);
void check_whole(const char * name, int64_t value, int64_t low, int64_t high);

// numbers in place of 0
void resolve_threads(engine_options & options);

// that compute together, at any time; of options that are resolved
int32_t most_threads(const engine_options & options);

// RGB, 3 bytes a pixel, rows from top to bottom
struct image {
    uint32_t        width;
    uint32_t        height;
    const uint8_t * rgb; // [height, width, 3]
    std::string     id;  // the same for the same pixels and size; one for all frames of a video
    int32_t         frame = 0; // its number in its video, whose frames are slices of one picture
    std::string     content = {}; // the same for the same pixels and size, of a frame as of a picture; empty: the id and the number tell
    bool            enlarge = true; // may preprocessors that scale every picture to one size enlarge it?
};

// What makes the pictures of a request cheaper before the language model; empty: nothing.
struct picture_options {
    std::string turbo;   // the language of pyfastv_turbo_parse()
    std::string reducer; // the language of parse_reducer() (settings/reducer.h)
    std::string skip;    // the language of pyfastv_skip_parse()
};

// What a request did: the members of run_report, and the attributes of RunReport in Python.
#define PYFASTV_RUN_REPORT(X)                                                                                        \
    X(int64_t, prompt_tokens)       /* the picture's included */                                                     \
    X(int64_t, cached_tokens)       /* of those, the ones that were in the context already */                        \
    X(int64_t, visual_tokens)       /* those that enter the language model */                                        \
    X(int64_t, encoded_tokens)      /* those that the encoder makes */                                               \
    X(int64_t, patches)             /* what it would make without Turbo, and if nothing were left out */             \
    X(int64_t, skipped_tokens)      /* of those, the ones that were left out before it */                            \
    X(int64_t, recalled_tokens)     /* visual tokens that its question brought back to the later layers */           \
    X(int64_t, pictures_encoded)                                                                                     \
    X(int64_t, pictures_from_cache)                                                                                  \
    X(int64_t, pictures_from_disk)  /* of those, the ones that were in no memory */                                  \
    X(int64_t, generated_tokens)                                                                                     \
    X(double,  encode_ms)           /* vision encoder and projector */                                               \
    X(double,  reduce_ms)           /* between encoder and language model */                                         \
    X(double,  full_ms)             /* prompt rows that ran through every layer at once */                           \
    X(double,  stage0_ms)                                                                                            \
    X(double,  choose_ms)                                                                                            \
    X(double,  later_ms)                                                                                             \
    X(double,  generate_ms)                                                                                          \
    X(double,  first_token_ms)      /* from its start to its first token */                                          \
    X(int32_t, graphs_reused)                                                                                        \
    X(std::vector<int32_t>, first_layers)           /* [stage] */                                                    \
    X(std::vector<int64_t>, visual_tokens_in_stage) /* [stage] of visual_tokens, those in its KV cache */            \
    X(std::vector<size_t>,  kv_bytes_used)          /* [stage] of the whole context, as what follows */              \
    X(std::vector<size_t>,  kv_bytes_allocated)     /* [stage] */                                                    \
    X(size_t,  kv_bytes_used_stock) /* what stock llama.cpp would use */                                             \
    X(size_t,  kv_bytes_allocated_stock)                                                                             \
    X(size_t,  archive_bytes)       /* of rows, scores and cosines kept for recall and for choosing again */         \
    X(size_t,  checkpoint_bytes)    /* of states of recurrent layers kept for later prompts, of all slots */

struct run_report {
#define X(type, name) type name = {};
    PYFASTV_RUN_REPORT(X)
#undef X
};

} // namespace pyfastv
