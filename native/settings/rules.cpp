#include "settings/rules.h"

namespace pyfastv {

const std::vector<score_rule> & score_rules() {
    static const std::vector<score_rule> res = {
        // name            who               highest  no_rope  seed
        { "last",          voters::last_row, false,   false,   false, "last" },
        { "question-mean", voters::question, false,   false,   false, "question-mean" },
        { "question-max",  voters::question, true,    false,   false, "question-max" },
        { "all",           voters::all_rows, false,   false,   false, "all" },
        { "last-no-rope",  voters::last_row, false,   true,    false, "last-no-rope" },
        { "random",        voters::nobody,   false,   false,   true,  "random, random7 (a seed)" },
        { "none",          voters::nobody,   false,   false,   false, "none" },
    };
    return res;
}

const std::vector<pick_rule> & pick_rules() {
    static const std::vector<pick_rule> res = {
        { "top-k",   pick_number::none,  false, "",       "top-k" },
        { "window",  pick_number::whole, false, "window", "window4 (side of a window)" },
        { "uniform", pick_number::none,  false, "",       "uniform" },
        { "grid",    pick_number::whole, false, "stride", "grid3 (every third)" },
        { "mass",    pick_number::share, false, "mass",   "mass0.95 (share of the scores)" },
        { "cover",   pick_number::none,  true,  "",       "cover" },
    };
    return res;
}

const score_rule & rule_of(pyfastv_score score) { return score_rules().at(score); }
const pick_rule  & rule_of(pyfastv_pick  pick)  { return pick_rules().at(pick); }

bool reads_attention(const pyfastv_cut & cut) { return rule_of(cut.score).who != voters::nobody; }

bool every_row_votes(pyfastv_score score) {
    const auto who = rule_of(score).who;
    return who == voters::question || who == voters::all_rows;
}

} // namespace pyfastv
