#pragma once

#include "pyfastv.h"

#include "choose/greedy.h"

#include <cstddef>
#include <cstdint>
#include <vector>

// Which visual tokens of one picture stay at a cut. Pure functions: scores in, ascending indices out.
// Of equal scores the lower index comes first.
namespace pyfastv {

// A slice of a picture: nx*ny tokens in raster order. Tokens that form no grid are one row of n.
struct patch_grid {
    int32_t nx;
    int32_t ny;
};

// Cosines of the tokens of a part of a picture (choose/parts.h).
struct similar_part {
    size_t        n;
    const float * cosines; // [n, n]
};

// All tokens of one picture, those that an earlier cut dropped included.
struct picture_scores {
    std::vector<float>      scores;  // [n]
    std::vector<uint8_t>    present; // [n] 0: not to be chosen
    std::vector<patch_grid> grids;   // the slices, in order; their tokens sum to n

    // pick=cover: cosines of the hidden rows of the tokens that are present, as similarities() makes them
    // (choose/similarity.h): the parts, in order; empty: none
    std::vector<similar_part> similarity;

    for_all run = one_by_one; // work on parts
    stop_fn stopped;          // asked by those who do it; choose() then throws aborted (products/products.h)
};

// How many of the n tokens of a picture stay when the share `drop` leaves: round-half-even of n*(1 - drop), at least 1
// unless drop is 1.
size_t count_kept(size_t n, float drop);

// min(count_kept(all tokens, cut.drop), tokens present) of those present; for mass at least that many.
//
//   top-k    FastV's rule (ECCV 2024, section 4.1): the highest scores.
//   window   Every window x window part of a grid keeps its share of the highest scores, so that no part of the picture
//            goes unseen. Windows at the right and lower edge may be smaller. Of s tokens present in a window, the one of
//            rank r comes before others by (r + 0.5)/s, then by its score.
//   uniform  Evenly spaced among those present, whatever the scores.
//   grid     First the tokens at every stride-th column and row of a grid, starting at stride/2 (uniformly thinned if
//            they are too many), then the highest scores (FEATHER, arXiv 2412.13180).
//   mass     As few of the highest scores as hold the share `mass` of the sum over those present (ZipVL, arXiv 2410.08584).
//   cover    The set S that makes sum_i score_i * max_{j in S} (1 + similarity_ij)/2 large, picked greedily: every token is
//            represented by the most similar one in S, and counts as much as it scores. Facility location; the greedy set
//            reaches 1 - 1/e of the best (Nemhauser, Wolsey and Fisher, 1978). Tokens of different parts (more than
//            most_compared tokens) have a similarity of -1: nothing represents them. Without similarity: top-k.
std::vector<int32_t> choose(const picture_scores & picture, const pyfastv_cut & cut);

// score=random: n numbers in [0, 1) from a seed, the same on every machine.
std::vector<float> random_scores(size_t n, uint32_t seed);

} // namespace pyfastv
