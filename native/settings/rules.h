#pragma once

#include "pyfastv.h"

#include <cstddef>
#include <cstdint>

// The rules of a cut, a row each: all that is known of a rule outside of the function that computes it, and where text, C,
// Python and the command line have it from. A cut names a rule by the place of its row, from 0, which programs have compiled
// in: rows stay where they are, new ones come last.
namespace pyfastv {

enum class number_kind { none, whole, share };

// what is written behind a rule's name, and belongs to it in a cut
struct rule_number {
    number_kind  kind;
    const char * name;
    double       lowest;  // of a share: above
    double       highest;
    bool         optional; // nothing is `lowest`
};

struct rule {
    const char * name;
    const char * shown; // in a list of the choices
    rule_number  number;
};

constexpr rule_number no_number = { number_kind::none, "", 0, 0, true };

constexpr double highest_int  = 2147483647;
constexpr double highest_seed = 4294967295;

//
// scores: what ranks the visual tokens at a cut
//

// Whose attention counts, at the last layer before the cut, averaged over the heads.
enum class voters {
    nobody,
    last_row,  // of the prompt
    question,  // the rows behind the last picture
    all_rows,  // from the picture on
};

struct score_rule : rule {
    voters who;
    bool   highest; // of the voters; else their mean
    bool   no_rope; // queries and keys without positions
    bool   drawn;   // no attention: a number for each token, from the seed
};

inline constexpr score_rule score_rules[] = {
    // name, shown, number                                                                              who               highest  no_rope  drawn
    { { "last",          "last",                     no_number },                                       voters::last_row, false,   false,   false }, // FastV's
    { { "question-mean", "question-mean",            no_number },                                       voters::question, false,   false,   false },
    { { "question-max",  "question-max",             no_number },                                       voters::question, true,    false,   false },
    { { "all",           "all",                      no_number },                                       voters::all_rows, false,   false,   false }, // the text of FastV's paper
    { { "last-no-rope",  "last-no-rope",             no_number },                                       voters::last_row, false,   true,    false }, // FEATHER, arXiv 2412.13180
    { { "random",        "random, random7 (a seed)", { number_kind::whole, "seed", 0, highest_seed, true } }, voters::nobody, false, false, true },
    { { "none",          "none",                     no_number },                                       voters::nobody,   false,   false,   false }, // all the same
};

//
// picks: how the tokens to keep are picked, given their scores; choose/choose.h says what each does
//

enum class picks { top_k, window, uniform, grid, mass, cover };

struct pick_rule : rule {
    picks how;
    bool  compares;  // looks at the cosines of hidden rows
    bool  keeps_more; // than drop leaves, if the scores want it
};

inline constexpr pick_rule pick_rules[] = {
    // name, shown, number                                                                                      how             compares  keeps_more
    { { "top-k",   "top-k",                          no_number },                                               picks::top_k,   false,    false },
    { { "window",  "window4 (side of a window)",     { number_kind::whole, "window", 1, highest_int, false } }, picks::window,  false,    false },
    { { "uniform", "uniform",                        no_number },                                               picks::uniform, false,    false },
    { { "grid",    "grid3 (every third)",            { number_kind::whole, "stride", 1, highest_int, false } }, picks::grid,    false,    false },
    { { "mass",    "mass0.95 (share of the scores)", { number_kind::share, "mass",   0, 1,           false } }, picks::mass,    false,    true  },
    { { "cover",   "cover",                          no_number },                                               picks::cover,   true,     false },
};

constexpr size_t n_score_rules = sizeof(score_rules)/sizeof(score_rules[0]);
constexpr size_t n_pick_rules  = sizeof(pick_rules)/sizeof(pick_rules[0]);

// of a cut that is valid
constexpr const score_rule & score_rule_of(const pyfastv_cut & cut) { return score_rules[cut.score]; }
constexpr const pick_rule  & pick_rule_of (const pyfastv_cut & cut) { return pick_rules[cut.pick]; }

// does the rule need the attention at the last layer before the cut?
constexpr bool reads_attention(const pyfastv_cut & cut) { return score_rule_of(cut).who != voters::nobody; }

// does the score count more rows than the last?
constexpr bool every_row_votes(const pyfastv_cut & cut) {
    return score_rule_of(cut).who == voters::question || score_rule_of(cut).who == voters::all_rows;
}

} // namespace pyfastv
