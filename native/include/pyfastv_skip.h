#ifndef PYFASTV_SKIP_H
#define PYFASTV_SKIP_H

// pyfastv: patches that their neighbours predict are not encoded
//
// libmtmd, as built by this project, can leave out what repeats in a picture before the vision encoder sees it: white margins,
// flat areas of a page, a screenshot or a drawing (after PixelPrune, arXiv 2604.00886). A unit is what becomes one token: merge x
// merge patches. Units are looked at in raster order, as lossless coding of pictures looks at pixels (LOCO-I, Weinberger,
// Seroussi and Sapiro, 1996):
//
//     the first unit is encoded; of others in the first row the left one is the prediction, in the first column the upper one
//     elsewhere the upper one, if the left one differs no more from the upper left one than the upper one does; else the left one
//     a unit is left out if no channel of no pixel differs by more than tau from the prediction, of 255
//
// In place of a unit that was left out stands the one that predicted it, in later predictions too: so whatever is left out is
// within tau of the unit that stands for it, however long the way. The encoder computes the other units alone, with the
// positions, windows and masks that they have in the whole picture; in the language model they keep their positions, too.
//
// Usage:
//
//     struct mtmd_context * vision = mtmd_init_from_file(mmproj, model, mtmd_context_params_default());
//     struct pyfastv_skip_params params;
//     pyfastv_skip_default_params(&params, sizeof(params));
//     params.tau = 8;
//     if (pyfastv_skip_attach(vision, &params) != PYFASTV_OK) {
//         fprintf(stderr, "%s\n", pyfastv_skip_last_error());
//     }
//     // from here on mtmd.h is used as always; mtmd_tokenize() leaves out, and counts what is left
//
// Programs that know nothing of this header: with these libraries in place of the stock ones and LLAMA_SKIP="tau=8" in the
// environment every mtmd context leaves out, if its encoder can. A picture of which nothing was left out, and a context that was
// never attached, run exactly the code of stock llama.cpp.
//
// Thread safety: that of mtmd.h; a context is used by one thread at a time.

#include "pyfastv.h"

#ifdef __cplusplus
extern "C" {
#endif

struct mtmd_context;
struct mtmd_image_tokens;

struct pyfastv_skip_params {
    size_t size; // sizeof(struct pyfastv_skip_params)
    float  tau;  // largest difference of a channel, of 255: 0 <= tau <= 255; 0: what is the same
};

// tau = 0. size: sizeof(*params), which is set, too. Returns PYFASTV_OK or PYFASTV_BAD_PARAMS.
PYFASTV_API enum pyfastv_status pyfastv_skip_default_params(struct pyfastv_skip_params * params, size_t size);

// Parameters from text, "tau=8", as in the environment variable LLAMA_SKIP; params->size is set by the caller. Returns PYFASTV_OK
// or PYFASTV_BAD_PARAMS.
PYFASTV_API enum pyfastv_status pyfastv_skip_parse(const char * text, struct pyfastv_skip_params * params);

// Leave out of the pictures that this context tokenizes from now on, or, with params == NULL, no more. Chunks that were tokenized
// before stay as they are and can still be encoded. Returns PYFASTV_OK, or PYFASTV_BAD_PARAMS or PYFASTV_UNSUPPORTED, after which
// nothing has changed.
PYFASTV_API enum pyfastv_status pyfastv_skip_attach(struct mtmd_context * ctx, const struct pyfastv_skip_params * params);

// Can this context's encoder leave units out? NULL: yes. Else the reason; valid until the next call on this thread.
PYFASTV_API const char * pyfastv_skip_unsupported_reason(const struct mtmd_context * ctx);

// The units of a picture, or slice, that are encoded, which are its tokens, ascending; units are numbered in raster order. Writes
// at most `cap` entries and returns how many there are; 0: nothing was left out.
PYFASTV_API size_t pyfastv_skip_places(const struct mtmd_image_tokens * image_tokens, int32_t * out, size_t cap);

// Text of the last error of this thread in a function of this header, never NULL. Valid until the next call of one.
PYFASTV_API const char * pyfastv_skip_last_error(void);

#ifdef __cplusplus
}
#endif

#endif // PYFASTV_SKIP_H
