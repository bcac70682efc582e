#pragma once

#include "pyfastv.h"

#include <cstdint>
#include <vector>

// The rules of a cut, a row each: all that is known of a rule outside of the function that computes it.
namespace pyfastv {

// whose attention counts
enum class voters {
    nobody,
    last_row,  // of the prompt
    question,  // the rows behind the last picture
    all_rows,  // from the picture on
};

struct score_rule {
    const char * name;
    voters       who;
    bool         highest;   // of the voters; else their mean
    bool         no_rope;   // queries and keys without positions
    bool         takes_seed;
    const char * shown;     // in a list of the choices
};

// what is written behind a pick's name
enum class pick_number { none, whole, share };

struct pick_rule {
    const char * name;
    pick_number  number;
    bool         compares;  // looks at the cosines of hidden rows
    const char * number_name;
    const char * shown;
};

// by pyfastv_score, pyfastv_pick
const std::vector<score_rule> & score_rules();
const std::vector<pick_rule>  & pick_rules();

const score_rule & rule_of(pyfastv_score score);
const pick_rule  & rule_of(pyfastv_pick pick);

// does the rule need the attention at the last layer before the cut?
bool reads_attention(const pyfastv_cut & cut);

// does the score count more rows than the last?
bool every_row_votes(pyfastv_score score);

} // namespace pyfastv
