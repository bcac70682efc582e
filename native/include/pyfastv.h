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
// A schedule is a list of such cuts, each with a layer and a rule of its own. The layers between two cuts are a stage.
// The layers belong to the context; each of its sequences may have rules and drops of its own (pyfastv_set_schedule()).
//
// Usage:
//
//     struct llama_context * ctx = llama_init_from_model(model, llama_context_default_params());
//     struct pyfastv_params params;
//     pyfastv_default_params(&params, sizeof(params));
//     params.cuts[0].layer = 2;
//     params.cuts[0].drop  = 0.5f;
//     if (pyfastv_attach(ctx, &params) != PYFASTV_OK) {
//         fprintf(stderr, "%s\n", pyfastv_last_error());   // says why, and what to change
//     }
//     // from here on llama.h and mtmd.h are used as always: decode the text, the picture, the question; read logits
//     struct pyfastv_report report = { .size = sizeof(report) };
//     pyfastv_get_report(ctx, &report);
//
// Programs that know nothing of this header: with these libraries in place of the stock ones and
// LLAMA_FASTV="k=2,drop=0.5" in the environment (pyfastv_parse() has the whole language) every context that can be given
// stages gets them when it is made.
//
// What happens inside: from the first visual row on, llama_decode() runs only stage 0 (the layers before the first cut)
// and keeps the hidden rows. The choice is made, and the later layers run, when logits are first read
// (llama_get_logits*) or when pyfastv_flush() is called. Outputs that nobody read before the next llama_decode() count
// as not asked for. The rows of dropped tokens are kept: a later question (several tokens of a sequence in a batch of
// which not all are read; of a draft that is verified all are) may bring some of them back. Removing the end of a
// sequence up to a question takes the choice back that this question made. A context that was never attached runs
// exactly the code of stock llama.cpp.
//
// Versions: structures that may grow begin with their size, as the program was compiled, and grow at their end only, so that
// it goes on with later libraries. A size that a library does not know is PYFASTV_BAD_PARAMS, and nothing is read or written.
// A later rule needs no field: a cut names rules by numbers that stay (pyfastv_find_score(), pyfastv_find_pick()).
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
    PYFASTV_MEDIA_IMAGE = 0, // embedding rows are visual tokens of a new picture: ranked and pruned (the default)
    PYFASTV_MEDIA_AUDIO = 1, // embedding rows are kept, like text
    PYFASTV_MEDIA_SLICE = 2, // embedding rows are visual tokens of one more slice of the picture in front, if it is of the same
                             // id and still waits; else of a new picture
};

struct pyfastv_cut {
    int32_t layer;        // the first layer that does not see all: 1 <= layer < n_layer, ascending. FastV's K
    float   drop;         // share of a picture's tokens that layers from here on do not see, of all that the picture has,
                          // not of those that an earlier cut left: 0 <= drop <= 1, ascending. FastV's R. Of n tokens
                          // round(n*(1 - drop)) stay, half to even; at least 1 unless drop is 1
    int32_t score;        // what ranks the visual tokens: pyfastv_find_score(); 0 is "last", FastV's
    int32_t pick;         // how the tokens to keep are picked, given their scores: pyfastv_find_pick(); 0 is "top-k", FastV's
    double  score_number; // the number that stands behind the rule's name in text, as 7 of "random7"; and 4 of "window4" or
    double  pick_number;  // 0.95 of "mass0.95". docs/methods.md has what each rule takes; those that take none do not read it
    bool    weigh;        // a kept token counts in attention, from here to the next cut, as often as the tokens that it
                          // stands for: itself and the dropped ones that are most similar to it. log(count) is added
                          // to the logits of its key, as in ToMe (arXiv 2210.09461, section 3.2)
    bool    merge;        // dropped rows are averaged into the kept row of the same picture that is nearest by cosine
};

#define PYFASTV_MAX_CUTS   8
#define PYFASTV_MAX_STAGES (PYFASTV_MAX_CUTS + 1)

struct pyfastv_params {
    size_t             size;   // sizeof(struct pyfastv_params)
    int32_t            n_cuts; // 1 to PYFASTV_MAX_CUTS
    struct pyfastv_cut cuts[PYFASTV_MAX_CUTS];

    float   recall;  // share of a picture's tokens that one later question may bring back at a cut, 0 <= recall <= 1; 0: none.
                     // Where layers are recurrent rows come back out of order, and the default of 0.025 means none
    int32_t n_cells; // KV cells of the later stages; 0: as many as stage 0; -1: by drop, see pyfastv_parse()
};

// Counts and times since pyfastv_attach() or pyfastv_reset_report().
struct pyfastv_report {
    size_t  size;             // sizeof(struct pyfastv_report), set by the caller
    int32_t n_visual;         // visual tokens decoded
    int32_t n_recalled;       // tokens that a later question brought back (at any cut)
    int32_t n_pending;        // rows that wait at the first cut for somebody to read logits, of all sequences
    double  t_stage0_ms;      // layers before the first cut, of the rows that waited
    double  t_choose_ms;      // choosing
    double  t_later_ms;       // the later layers, of the rows that waited
    size_t  archive_bytes;    // of hidden rows kept for rows that wait, for recall and for taking a choice back, and of the
                              // attention that rows paid to visual tokens, kept for the same; some hundred bytes a
                              // visual token of what is known about it are not counted
    size_t  similarity_bytes; // of their cosines, kept for the next choice (pick=cover, weigh)

    int32_t n_stages;         // n_cuts + 1; 1 for a context without stages, whose KV cache then counts as stage 0
    int32_t first_layer     [PYFASTV_MAX_STAGES];
    int32_t n_visual_entered[PYFASTV_MAX_STAGES]; // those that entered the stage, each time that they were chosen; not by recall
    size_t  kv_bytes_used   [PYFASTV_MAX_STAGES]; // bytes of the KV cells in use
    size_t  kv_bytes        [PYFASTV_MAX_STAGES]; // bytes allocated
    size_t  kv_bytes_used_stock; // what stock llama.cpp would use for the same tokens
    size_t  kv_bytes_stock;      // and allocate
};

// The version of the library, as "0.1.0".
PYFASTV_API const char * pyfastv_version(void);

// Rules by their names in text, as "question-max" or "cover", without the number behind them; -1: there is none of this name.
// docs/methods.md says what each does.
PYFASTV_API int32_t pyfastv_find_score(const char * name);
PYFASTV_API int32_t pyfastv_find_pick (const char * name);

// The other way round, for lists of choices: names from 0 on, NULL behind the last.
PYFASTV_API const char * pyfastv_score_name(int32_t score);
PYFASTV_API const char * pyfastv_pick_name (int32_t pick);

// One cut: "recommended" of pyfastv_parse(), so layer = 2, drop = 0.5; its rule is that of the cuts behind it, too. recall =
// 0.025, n_cells = 0. size: sizeof(*params), which is set, too. Returns PYFASTV_OK or PYFASTV_BAD_PARAMS.
PYFASTV_API enum pyfastv_status pyfastv_default_params(struct pyfastv_params * params, size_t size);

// Parameters from text, as in the environment variable LLAMA_FASTV. params->size is set by the caller. Cuts are separated by
// ";", the fields of a cut by ",":
//     k=2             the cut's layer; k=25% counts in layers of the model, rounded, for pyfastv_parse()'s n_layer
//     drop=0.5
//     score=last      or another of pyfastv_score_name(), with a number behind it if it takes one: random7
//     pick=top-k      or another of pyfastv_pick_name(), likewise: window4
//     weigh           kept tokens count as often as those that they stand for
//     merge           dropped rows are merged
// and, in any cut, for all of them:
//     recall=0.025
//     cells=2048      KV cells of the later stages, or
//     cells=auto      n_ctx*(1 - drop) + n_ctx/4 of the stage's drop, rounded up to 256, at most n_ctx
// What is left out is as in pyfastv_default_params(), so "k=4,drop=0.75" is "recommended,k=4,drop=0.75". But in a cut that names a
// part of its rule, which is score, pick, weigh and merge, the other parts are FastV's: last, top-k, neither weigh nor merge. Or
// a schedule that has a name, and what differs from it:
//     recommended     k=2,drop=0.5,score=question-max,pick=cover,weigh
//     fastv           k=2,drop=0.5,score=last
//     zipvl           k=2,drop=0.9,score=question-mean,pick=mass0.95
//     vtw             k=50%,drop=1,score=none,recall=0
//     pyramiddrop     k=25%,drop=0.5,score=last;k=50%,drop=0.75,score=last;k=75%,drop=0.875,score=last (with recall= and cells=
//                     only)
//     feather         k=25%,drop=0.5,score=last-no-rope,pick=grid3;k=50%,drop=0.75,score=last-no-rope (likewise)
// as in "fastv,k=4,drop=0.75", which is FastV's own rule. In the environment "off" is as if it were not set. Returns PYFASTV_OK
// or PYFASTV_BAD_PARAMS.
PYFASTV_API enum pyfastv_status pyfastv_parse(const char * text, int32_t n_layer, struct pyfastv_params * params);

// Give the context stages, or, with params == NULL, take them away. The context's memory is cleared: call it before
// the first llama_decode() or after llama_memory_clear(). If the layers of the cuts and n_cells stay the same, nothing is
// reallocated.
// Returns PYFASTV_OK or an error. After PYFASTV_BAD_PARAMS nothing has changed. After PYFASTV_UNSUPPORTED and
// PYFASTV_OUT_OF_MEMORY the context has no stages; if not even a plain memory could be had, it can only be freed.
PYFASTV_API enum pyfastv_status pyfastv_attach(struct llama_context * ctx, const struct pyfastv_params * params);

// The schedule by which a sequence's visual tokens are chosen, or, with params == NULL, that which was attached. Its cuts lie
// at the layers of those attached, and n_cells is as attached; scores, picks, their numbers, drops, weigh, merge and recall
// are the sequence's own. A sequence that is not pruned has drop = 0 at every cut, and recall = 0: its logits are those of a
// context without stages, to the bit where its cells are the same. Sequences of different schedules may be in one batch.
// The sequence must hold no visual tokens; text may stay. It has the schedule until it is given another one, or
// pyfastv_attach() is called. Besides, a copy (llama_memory_seq_cp() to a sequence without visual tokens) and a sequence read
// from a state have the schedule of what they come from, until they are empty.
// Returns PYFASTV_OK or an error, after which nothing has changed: PYFASTV_BAD_PARAMS also for other layers, other n_cells, a
// sequence that holds visual tokens or that there is not; PYFASTV_UNSUPPORTED also for a context without stages.
PYFASTV_API enum pyfastv_status pyfastv_set_schedule(struct llama_context * ctx, int32_t seq_id, const struct pyfastv_params * params);

// The schedule of a sequence; seq_id -1: that which was attached. params->size is set by the caller. Returns PYFASTV_OK,
// PYFASTV_BAD_PARAMS, or PYFASTV_UNSUPPORTED for a context without stages.
PYFASTV_API enum pyfastv_status pyfastv_get_schedule(const struct llama_context * ctx, int32_t seq_id, struct pyfastv_params * params);

// Has a schedule the layers and the n_cells of the one attached, so that a sequence could have it as far as these go? False for
// a context without stages, and for params out of range.
PYFASTV_API bool pyfastv_fits(const struct llama_context * ctx, const struct pyfastv_params * params);

// Can a context of this model be given stages? NULL: yes. Else the reason, a static string. Loads nothing, runs nothing;
// pyfastv_attach() checks more (it builds the graphs).
PYFASTV_API const char * pyfastv_unsupported_reason(const struct llama_model * model);

// Can the first cut be at this layer, and any other? NULL: yes. Else the reason, a static string: sliding-window layers
// give no scores, and the first layers of deepstack models are fed visual features.
PYFASTV_API const char * pyfastv_unsupported_layer(const struct llama_model * model, int32_t layer);

// For schedules that were made without a model in mind, as presets are: a cut at a layer where it cannot be moves to the next
// where it can, as its rule allows, and the cuts behind it move out of its way. If one of them finds no layer, nothing changes,
// and pyfastv_attach() says why. LLAMA_FASTV is read so; pyfastv_attach() itself takes layers as they are. Returns PYFASTV_OK,
// or PYFASTV_BAD_PARAMS, after which nothing has changed.
PYFASTV_API enum pyfastv_status pyfastv_fit_layers(const struct llama_model * model, struct pyfastv_params * params);

// Make the choice and run the later layers now, for all sequences, for callers that want a status and not a null pointer
// from llama_get_logits*(). Nothing pending: does nothing. On PYFASTV_ABORTED the rows stay pending; the call can be
// repeated.
PYFASTV_API enum pyfastv_status pyfastv_flush(struct llama_context * ctx);

// The same of one sequence in pieces, for programs that have others which shall not wait: a call makes a choice, or runs at
// most n_ubatch rows through the layers of a stage. *more: it is to be called again. Between the calls other sequences may be
// decoded and read. What is done to this one, or to all (they are flushed, decoded, removed, copied, shifted, saved), and a
// first piece of another, takes back what was done, and its rows wait as before. When there is no more to do, the outputs of
// the batch that the sequence was decoded with, as far as they are its own, can be read, and no others.
PYFASTV_API enum pyfastv_status pyfastv_flush_piece(struct llama_context * ctx, int32_t seq_id, bool * more);

// true: the text of the following llama_decode() calls is of answers that were given earlier, though several tokens come at
// once. It is no question, and recalls nothing. false, as in a new context: as the number of tokens and of outputs says.
PYFASTV_API void pyfastv_set_answering(struct llama_context * ctx, bool answering);

// From now on the positions of this context's sequences may jump forward, as those of M-RoPE models may in llama.cpp: for
// embedding rows that keep their places though others between them were left out. It stays so.
PYFASTV_API void pyfastv_allow_position_gaps(struct llama_context * ctx);

// A row of the table of token embeddings: writes n_embd numbers. False: there is no such token, or no table.
PYFASTV_API bool pyfastv_token_embedding(const struct llama_model * model, int32_t token, float * out);

// What the embedding rows of the following llama_decode() calls are. libmtmd calls this for every media chunk.
// nx, ny: what the tokens cover in raster order, in tokens, or in any unit of the same proportions, such as pixels; 0 if
// it is not known: a square number of tokens is then a square, any other one row. id: of the picture, or NULL; a picture that
// is shown twice is two pictures, whatever its id.
PYFASTV_API void pyfastv_begin_media(struct llama_context * ctx, enum pyfastv_media media, const char * id, int32_t nx, int32_t ny);

// The embedding rows of the following llama_decode() calls go on with the picture that their sequence ends with, whatever was
// decoded in other sequences since its beginning: for programs that decode a picture in pieces.
PYFASTV_API void pyfastv_continue_media(struct llama_context * ctx);

// Fills in the first report->size bytes. For a context without stages only the sizes of the KV cache, if it is a plain one; the
// rest is 0. Returns PYFASTV_OK or an error, after which nothing has changed.
PYFASTV_API enum pyfastv_status pyfastv_get_report(const struct llama_context * ctx, struct pyfastv_report * report);
PYFASTV_API void pyfastv_reset_report(struct llama_context * ctx);

// What a sequence's visual tokens came to at a cut, counted over all its pictures in prompt order, save for pictures of which
// nothing is left: ascending indices of those that entered the stage behind the cut, recalled ones included; and the scores of
// the last choice there, one for every visual token (0 for those that did not reach the cut; attention sums to at most 1).
// Both write at most `cap` entries and return how many there are.
PYFASTV_API size_t pyfastv_get_kept  (const struct llama_context * ctx, int32_t seq_id, int32_t cut, int32_t * out, size_t cap);
PYFASTV_API size_t pyfastv_get_scores(const struct llama_context * ctx, int32_t seq_id, int32_t cut, float   * out, size_t cap);

struct pyfastv_grid {
    int32_t picture; // counted from 0
    int32_t nx;      // patches; a slice without a grid is one row
    int32_t ny;
};

// The slices of a sequence's pictures, in prompt order. Writes at most `cap` and returns how many there are.
PYFASTV_API size_t pyfastv_get_grids(const struct llama_context * ctx, int32_t seq_id, struct pyfastv_grid * out, size_t cap);

// Text of the last error of this thread, never NULL. Valid until the next call of a pyfastv function on this thread.
PYFASTV_API const char * pyfastv_last_error(void);

#ifdef __cplusplus
}
#endif

#endif // PYFASTV_H
