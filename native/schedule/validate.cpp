#include "schedule/schedule.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace pyfastv {

bool reads_attention(const pyfastv_cut & cut) {
    return cut.score != PYFASTV_SCORE_RANDOM && cut.score != PYFASTV_SCORE_NONE;
}

bool every_row_votes(pyfastv_score score) {
    return score == PYFASTV_SCORE_QUESTION_MEAN || score == PYFASTV_SCORE_QUESTION_MAX || score == PYFASTV_SCORE_ALL;
}

[[noreturn]] static void out_of_range(const char * name, const std::string & value, const char * range) {
    throw std::invalid_argument(std::string(name) + " = " + value + " is out of range: " + range);
}

// of an enumeration that a program has set: what is there may be none of its values
template <typename T>
static int number_of(const T & value) {
    static_assert(sizeof(T) == sizeof(int));
    int res;
    memcpy(&res, &value, sizeof(res));
    return res;
}

void validate_cut(const pyfastv_cut & cut) {
    const int score = number_of(cut.score);
    const int pick  = number_of(cut.pick);

    // written so that NaN fails
    if (!(cut.drop >= 0.0f && cut.drop <= 1.0f)) {
        out_of_range("drop", std::to_string(cut.drop), "0 <= drop <= 1");
    }
    if (score < PYFASTV_SCORE_LAST || score > PYFASTV_SCORE_NONE) {
        throw std::invalid_argument("score = " + std::to_string(score) + " is no pyfastv_score");
    }
    if (pick < PYFASTV_PICK_TOP_K || pick > PYFASTV_PICK_COVER) {
        throw std::invalid_argument("pick = " + std::to_string(pick) + " is no pyfastv_pick");
    }
    if (pick == PYFASTV_PICK_WINDOW && cut.window < 1) {
        out_of_range("window", std::to_string(cut.window), "at least 1");
    }
    if (pick == PYFASTV_PICK_GRID && cut.stride < 1) {
        out_of_range("stride", std::to_string(cut.stride), "at least 1");
    }
    if (pick == PYFASTV_PICK_MASS && !(cut.mass > 0.0f && cut.mass <= 1.0f)) {
        out_of_range("mass", std::to_string(cut.mass), "0 < mass <= 1");
    }
}

void validate(const pyfastv_params & params, int32_t n_layer) {
    if (params.n_cuts < 1 || params.n_cuts > PYFASTV_MAX_CUTS) {
        throw std::invalid_argument("there are " + std::to_string(params.n_cuts) + " cuts; 1 to " + std::to_string(PYFASTV_MAX_CUTS) + " can be made");
    }
    for (int32_t c = 0; c < params.n_cuts; ++c) {
        const auto & cut = params.cuts[c];

        if (cut.layer < 1 || cut.layer >= n_layer) {
            throw std::invalid_argument("k = " + std::to_string(cut.layer) + " is out of range: this model has " +
                    std::to_string(n_layer) + " layers, so 1 <= k <= " + std::to_string(n_layer - 1));
        }
        validate_cut(cut);

        if (c > 0 && cut.layer <= params.cuts[c - 1].layer) {
            throw std::invalid_argument("k = " + std::to_string(cut.layer) + " follows k = " + std::to_string(params.cuts[c - 1].layer) +
                    ": every cut must be at a later layer than the one before");
        }
        if (c > 0 && cut.drop < params.cuts[c - 1].drop) {
            throw std::invalid_argument("drop = " + std::to_string(cut.drop) + " follows drop = " + std::to_string(params.cuts[c - 1].drop) +
                    ": drop is a share of all tokens of a picture, so it cannot fall from cut to cut");
        }
    }
    if (!(params.recall >= 0.0f && params.recall <= 1.0f)) {
        out_of_range("recall", std::to_string(params.recall), "0 <= recall <= 1");
    }
    if (params.n_cells < -1) {
        out_of_range("cells", std::to_string(params.n_cells), "at least 1, 0 for as many as stage 0, or \"auto\"");
    }
}

} // namespace pyfastv
