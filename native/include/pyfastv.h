#ifndef PYFASTV_H
#define PYFASTV_H

// pyfastv: FastV inside llama.cpp
//
// libllama, as built by this project, can let different layers of a model hold different sets of tokens.
// FastV (Chen et al., "An Image is Worth 1/2 Tokens After Layer 2", ECCV 2024, section 4.1) is the first use:
// layers [0, k) run on every token, the visual tokens are ranked by the attention that they receive from the last
// prompt token at layer k-1 (mean over heads), the lowest `drop` share is left out of layers [k, n_layer).
// Kept tokens stay in prompt order and keep their positions.
//
// Usage:
//
//     struct llama_context * ctx = llama_init_from_model(model, llama_context_default_params());
//     struct pyfastv_params params = pyfastv_default_params();
//     params.k    = 2;
//     params.drop = 0.5f;
//     if (pyfastv_attach(ctx, &params) != PYFASTV_OK) {
//         fprintf(stderr, "%s\n", pyfastv_last_error());   // says why, and what to change
//     }
//     // from here on llama.h and mtmd.h are used as always: decode the text, the picture, the question; read logits
//     struct pyfastv_report report = pyfastv_get_report(ctx);
//
// Programs that know nothing of this header: with these libraries in place of the stock ones and
// LLAMA_FASTV="k=2,drop=0.5" in the environment (further: score=last|question-mean|question-max, pick=top-k|uniform|window4)
// every context that can be given stages gets them when it is made.
//
// What happens inside: from the first visual row on, llama_decode() runs only stage 0 (layers [0, k)) and keeps the
// hidden rows. The choice is made, and the later layers run, when logits are first read (llama_get_logits*) or when
// pyfastv_flush() is called. Outputs that nobody read before the next llama_decode() count as not asked for.
// A context that was never attached runs exactly the code of stock llama.cpp.
//
// Thread safety: that of llama.h; a context is used by one thread at a time.

#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>

#if defined(_WIN32) && !defined(__MINGW32__)
#    ifdef LLAMA_BUILD
#        define PYFASTV_API __declspec(dllexport)
#    else
#        define PYFASTV_API __declspec(dllimport)
#    endif
#else
#    define PYFASTV_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

struct llama_context;
struct llama_model;

enum pyfastv_status {
    PYFASTV_OK              =  0,
    PYFASTV_BAD_PARAMS      = -1, // a value is outside its range
    PYFASTV_UNSUPPORTED     = -2, // this model or context cannot be run in stages
    PYFASTV_OUT_OF_MEMORY   = -3, // the memory or the compute buffers of the stages could not be allocated
    PYFASTV_FAILED          = -4, // a graph could not be computed
    PYFASTV_ABORTED         = -5, // the abort callback of the context said stop; the call can be repeated
};

enum pyfastv_media {
    PYFASTV_MEDIA_IMAGE = 0, // embedding rows are visual tokens: ranked and pruned (the default)
    PYFASTV_MEDIA_AUDIO = 1, // embedding rows are kept, like text
};

// Whose attention, at layer k-1 and averaged over the heads, ranks the visual tokens.
enum pyfastv_score {
    PYFASTV_SCORE_LAST          = 0, // the last prompt token: FastV's rule
    PYFASTV_SCORE_QUESTION_MEAN = 1, // the tokens behind the last picture, averaged
    PYFASTV_SCORE_QUESTION_MAX  = 2, // the tokens behind the last picture, the highest
};

// How the tokens to keep are picked, given their scores. Of n tokens round(n*(1 - drop)) stay, half to even, at least 1.
enum pyfastv_pick {
    PYFASTV_PICK_TOP_K   = 0, // the highest scores: FastV's rule
    PYFASTV_PICK_WINDOW  = 1, // the highest of every window of the patch grid, each its share
    PYFASTV_PICK_UNIFORM = 2, // evenly spaced, whatever the scores
};

struct pyfastv_params {
    int32_t            k;      // layers [0, k) see every token; 1 <= k < n_layer. FastV's K
    float              drop;   // share of the visual tokens that layers [k, n_layer) do not see; 0 <= drop < 1. FastV's R
    enum pyfastv_score score;
    enum pyfastv_pick  pick;
    int32_t            window; // PYFASTV_PICK_WINDOW: side of a window in patches, at least 1
};

// Counts and times since pyfastv_attach() or pyfastv_reset_report().
struct pyfastv_report {
    int32_t k;
    float   drop;
    int32_t n_visual;         // visual tokens decoded
    int32_t n_visual_kept;    // of those, the ones that entered the later layers
    int32_t n_pending;        // rows that wait at the stage boundary for somebody to read logits
    double  t_stage0_ms;      // layers [0, k) of the rows that waited
    double  t_choose_ms;      // reading the scores and choosing
    double  t_later_ms;       // layers [k, n_layer) of the rows that waited
    int32_t n_stages;         // 2; 1 for a context without stages, whose KV cache then counts as stage 0
    size_t  kv_cell_bytes[2]; // bytes of one KV cell in stage 0 and in the later stage
    int32_t kv_cells_used[2]; // KV cells in use
    int32_t kv_cells_size[2]; // KV cells allocated
};

// k = 2, drop = 0.5, last, top-k: the paper's main setting
PYFASTV_API struct pyfastv_params pyfastv_default_params(void);

// Give the context stages, or, with params == NULL, take them away. The context's memory is cleared: call it before
// the first llama_decode() or after llama_memory_clear(). If `k` stays the same, nothing is reallocated.
// Returns PYFASTV_OK or an error. After PYFASTV_BAD_PARAMS nothing has changed. After PYFASTV_UNSUPPORTED and
// PYFASTV_OUT_OF_MEMORY the context has no stages; if not even a plain memory could be had, it can only be freed.
PYFASTV_API enum pyfastv_status pyfastv_attach(struct llama_context * ctx, const struct pyfastv_params * params);

// Can a context of this model be given stages? NULL: yes. Else the reason, a static string. Loads nothing, runs nothing;
// pyfastv_attach() checks more (it builds the graphs).
PYFASTV_API const char * pyfastv_unsupported_reason(const struct llama_model * model);

// Make the choice and run the later layers now, for callers that want a status and not a null pointer from
// llama_get_logits*(). Nothing pending: does nothing. On PYFASTV_ABORTED the rows stay pending; the call can be repeated.
PYFASTV_API enum pyfastv_status pyfastv_flush(struct llama_context * ctx);

// What the embedding rows of the following llama_decode() calls are. libmtmd calls this for every media chunk.
PYFASTV_API void pyfastv_set_media(struct llama_context * ctx, enum pyfastv_media media);

// For a context without stages only the sizes of the KV cache are filled, if it is a plain one.
PYFASTV_API struct pyfastv_report pyfastv_get_report(const struct llama_context * ctx);
PYFASTV_API void pyfastv_reset_report(struct llama_context * ctx);

// The choice of the last flush: ascending indices of the kept visual tokens, counted over all visual tokens of that
// flush in prompt order; and the scores that it was made from (one per visual token, they sum to at most 1).
// Both write at most `cap` entries and return how many there are.
PYFASTV_API size_t pyfastv_get_kept  (const struct llama_context * ctx, int32_t * out, size_t cap);
PYFASTV_API size_t pyfastv_get_scores(const struct llama_context * ctx, float   * out, size_t cap);

// Text of the last error of this thread, never NULL. Valid until the next call of a pyfastv function on this thread.
PYFASTV_API const char * pyfastv_last_error(void);

#ifdef __cplusplus
}
#endif

#endif // PYFASTV_H
