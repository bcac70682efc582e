#pragma once

#include "choose/choose.h"
#include "settings/reducer.h"

#include "ggml-cpp.h"

#include <array>
#include <cstdint>
#include <vector>

// Fewer visual tokens between the projector and the language model. Pure functions on arrays; the same input gives the
// same output, and of equals the lower index comes first.
namespace pyfastv {

// What the projector made of one picture, or of the frames of a video.
struct visual_embeddings {
    const float *           values; // F32 [n, d]
    int64_t                 d;
    std::vector<patch_grid> slices; // slices of a picture or frames of a video, in order; their tokens sum to n

    const float * question   = nullptr; // F32 [n_question], compared with the first numbers of a token; null: none
    int64_t       n_question = 0;

    int64_t n() const;
};

// m outputs
struct reduced_embeddings {
    std::vector<float>   values;  // F32 [m, d]
    std::vector<int32_t> place;   // [m] the input whose position an output takes, strictly ascending
    std::vector<std::array<float, 3>> centre; // [m] slice, row, column, in patches: of a pooled token the centre of its
                                              // window, which `place` is the nearest input to (of two the earlier one)
    std::vector<int32_t> member;  // [n] the output that an input went into, -1: none
    std::vector<patch_grid> slices; // the outputs of each slice: a grid when pooled, else a row; nx = 0: none
};

// the slice that an input is in
size_t slice_of(const std::vector<patch_grid> & slices, int64_t i);

// A CPU for the matrix products. stopped: outlives it; asked during products, by one thread; null: nobody stops them.
// Throws std::bad_alloc.
ggml_backend_ptr make_cpu_backend(int32_t n_threads, const stop_fn * stopped = nullptr);

// How many outputs reduce() will give for these slices.
size_t count_reduced(const reducer & how, const std::vector<patch_grid> & slices);

// `backend`: a CPU for the matrix products. Throws std::invalid_argument where the slices do not fit the method or a
// question is missing, std::bad_alloc, and aborted (products/products.h) if `stopped`, which several threads ask, says so.
//
// What compares tokens (merge, divprune, cdpruner) compares more than most_compared of them within parts (choose/parts.h):
// two tokens of different parts are never merged, and count as unlike as can be.
//
//   pool      Average over windows of window x window patches, smaller at the right and lower edge; by keep: over nx x ny
//             windows as equal as can be, as many as are near keep, and not more, with sides near the picture's.
//   stride    Evenly spaced tokens.
//   merge     Rounds of bipartite matching (ToMe, arXiv 2210.09461, section 3): tokens of even rank go to the most similar
//             token of odd rank, the most similar pairs first; merged tokens are means over all in them. In raster order
//             of their heaviest members, and times 1 + log(size) with `scale` (after FOLDER, arXiv 2501.02430).
//   divprune  Greedy max-min diversity by cosine distance (DivPrune, arXiv 2503.02175): first the token that is farthest
//             from its nearest, then always the one that is farthest from those taken.
//   cdpruner  Greedy MAP of the determinantal point process with kernel r_i cos(i, j) r_j, r the relevance to the question
//             from 0 to 1 (CDPruner, arXiv 2506.10967), by the incremental Cholesky factor (arXiv 1709.05135).
//   vidcom2   Frames that are unlike the video's mean get more of the budget; in a frame the tokens stay that are unlike
//             the means of the video and of the frame (VidCom2, arXiv 2505.14454, equations 2 to 8).
//   evs       The first frame stays, then the tokens that changed most since the frame before, by cosine, over the whole
//             video (Efficient Video Sampling, arXiv 2510.14624). Frames of one size only.
//   pllava    Average over groups of frames and windows of patches (PLLaVA, arXiv 2404.16994). Frames of one size only.
reduced_embeddings reduce(const reducer & how, const visual_embeddings & in, ggml_backend_t backend, const stop_fn & stopped = {});

} // namespace pyfastv
