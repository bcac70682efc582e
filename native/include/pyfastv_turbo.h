#ifndef PYFASTV_TURBO_H
#define PYFASTV_TURBO_H

// pyfastv: Turbo inside llama.cpp's vision encoders
//
// libmtmd, as built by this project, can merge tokens of a picture while it is being encoded, so that the later blocks of
// the encoder, the projector and the language model have fewer of them (Turbo: Ju et al., arXiv 2312.07408 and 2407.11717;
// all at once: FOLDER, arXiv 2501.02430; merging as in ToMe, Bolya et al., arXiv 2210.09461).
//
// In each block of a range, between attention and MLP, where n tokens are left:
//     k_i          the block's key of token i, mean over the heads, of length 1
//     A_i          the attention that CLS pays to token i, mean over the heads; without CLS what all tokens pay it, mean
//                  (of pictures whose logits take more than 256 MiB every second one's, or every third's, ...). A sums to 1
//     score(i, j)  k_i . k_j - alpha*n*A_i
//     The tokens in raster order, CLS aside, are dealt out in turn, the first one to the evens. Each even i has the odd j of
//     the highest score as its partner. The r evens of the highest scores are merged into their partners: the mean weighted
//     by size, the number of patches that a token stands for. log(size) is added to the logits of a key from there on.
// A merged token has the place of its heaviest part in the picture (the lower one of two that are as heavy). Tokens stay in
// raster order of their places. If r is more than there are evens, this is repeated in the same block; keys of merged tokens
// are then the weighted mean, attention is the sum.
//
// Encoders behind whose blocks the whole grid is needed, for mergers, pixel shuffle and pooling, get it back: behind the last
// block, and wherever else rows leave the blocks, every patch has the row of the token that stands for it (restore). The encoder
// is faster, and what it makes has the tokens and positions that it has without Turbo. Where queries and keys are turned by
// positions, a merged token has that of its place; where attention is in windows, a token is merged into one of its window.
//
// Usage:
//
//     struct mtmd_context * vision = mtmd_init_from_file(mmproj, model, mtmd_context_params_default());
//     struct pyfastv_turbo_params params;
//     pyfastv_turbo_default_params(&params, sizeof(params));
//     params.share = 0.5f;
//     if (pyfastv_turbo_attach(vision, &params) != PYFASTV_OK) {
//         fprintf(stderr, "%s\n", pyfastv_turbo_last_error());
//     }
//     // from here on mtmd.h is used as always; mtmd_tokenize() counts the tokens that are left
//
// mtmd_helper_decode_image_chunk() gives every token the position of its place, as if nothing had been merged, and
// the text behind the picture starts where it would have started; so the positions of a sequence have gaps
// (pyfastv_allow_position_gaps() of pyfastv.h, which it calls). It uses the places of the last picture that was encoded.
//
// Programs that know nothing of this header: with these libraries in place of the stock ones and LLAMA_TURBO="share=0.5" in
// the environment every mtmd context merges, if its encoder can. A context that was never attached runs exactly the code of
// stock llama.cpp.
//
// Thread safety: that of mtmd.h; a context is used by one thread at a time.

#include "pyfastv.h"

// mtmd_encode_chunk(), mtmd_encode() and mtmd_batch_encode() return this if the context's cb_eval said stop; there is no
// output then. Stock llama.cpp returns 0.
#define PYFASTV_ENCODE_STOPPED 2

#ifdef __cplusplus
extern "C" {
#endif

struct mtmd_context;
struct mtmd_image_tokens;

// Of the encoder's blocks those count that run: LLaVA takes its features before the last block, which does not.
struct pyfastv_turbo_params {
    size_t  size;        // sizeof(struct pyfastv_turbo_params)
    int32_t r;           // tokens merged away in each block of the range; 0: by share
    float   share;       // share of all tokens that is merged away, evenly spread over the range, 0 < share < 1; 0: by r
    float   alpha;       // weight of the semantic value, alpha >= 0; 0: by redundancy alone
    int32_t first_layer; // the first block that merges, from 0; -1: the default
    int32_t last_layer;  // the last block that merges; -1: the default
    bool    once;        // merge everything in the last block that runs (FOLDER); r is then the number of all tokens merged
    bool    renumber;    // positions 0..n instead of places, for comparison
    int32_t restore;     // 1: give every patch a row again behind the blocks; 0: do not; -1: where the encoder needs it
};

// share = 0.5, alpha = 0.05, blocks of the first half of the encoder. size: sizeof(*params), which is set, too. Returns
// PYFASTV_OK or PYFASTV_BAD_PARAMS.
PYFASTV_API enum pyfastv_status pyfastv_turbo_default_params(struct pyfastv_turbo_params * params, size_t size);

// Parameters from text, as in the environment variable LLAMA_TURBO; params->size is set by the caller. Fields are separated by
// ",":
//     share=0.5 | r=16
//     alpha=0.1
//     layers=2-20     first and last block
//     once            excludes layers=
//     renumber
//     restore | restore=off
// What is left out is as in pyfastv_turbo_default_params(). Returns PYFASTV_OK or PYFASTV_BAD_PARAMS.
PYFASTV_API enum pyfastv_status pyfastv_turbo_parse(const char * text, struct pyfastv_turbo_params * params);

// Merge in this context's encoder from now on, or, with params == NULL, no more. Chunks that were tokenized before
// cannot be encoded afterwards: tokenize again. Returns PYFASTV_OK, or PYFASTV_BAD_PARAMS or PYFASTV_UNSUPPORTED, after which
// nothing has changed.
PYFASTV_API enum pyfastv_status pyfastv_turbo_attach(struct mtmd_context * ctx, const struct pyfastv_turbo_params * params);

// Can this context's encoder merge? NULL: yes. Else the reason; valid until the next call on this thread.
PYFASTV_API const char * pyfastv_turbo_unsupported_reason(const struct mtmd_context * ctx);

// Of the last picture, or slice, that was encoded (0 entries if nothing was merged). Patches are numbered in raster order, by
// encoders that restore in the order of their rows, and tokens that are left are then those before rows are given back.
// Each writes at most `cap` entries and returns how many there are.
//   places   for every token that is left: the patch whose place it has, ascending
//   sizes    for every token that is left: the number of patches that it stands for
//   targets  for every patch: the token that stands for it
PYFASTV_API size_t pyfastv_turbo_places (const struct mtmd_context * ctx, int32_t * out, size_t cap);
PYFASTV_API size_t pyfastv_turbo_sizes  (const struct mtmd_context * ctx, int32_t * out, size_t cap);
PYFASTV_API size_t pyfastv_turbo_targets(const struct mtmd_context * ctx, int32_t * out, size_t cap);

// For callers that keep embeddings: the places that belong to those that mtmd_helper_decode_image_chunk() is given next.
PYFASTV_API void pyfastv_turbo_set_places(struct mtmd_context * ctx, const int32_t * places, size_t n);

// Tokens of a picture, or slice, without merging; those that are left are mtmd_image_tokens_get_n_tokens().
PYFASTV_API int32_t pyfastv_turbo_patches(const struct mtmd_image_tokens * image_tokens);

// Text of the last error of this thread in a function of this header, never NULL. Valid until the next call of one.
PYFASTV_API const char * pyfastv_turbo_last_error(void);

#ifdef __cplusplus
}
#endif

#endif // PYFASTV_TURBO_H
