#include "schedule/names.h"

#include <algorithm>
#include <cmath>
#include <locale>
#include <set>
#include <sstream>
#include <stdexcept>
#include <vector>

namespace pyfastv {

// by pyfastv_score
static const std::vector<std::string> score_names = {
    "last", "question-mean", "question-max", "all", "last-no-rope", "random", "none",
};

// by pyfastv_pick; window, grid and mass are followed by a number
static const std::vector<std::string> pick_names = { "top-k", "window", "uniform", "grid", "mass", "cover" };

static const char * const score_choices = "last, question-mean, question-max, all, last-no-rope, random, random7 (a seed), none";
static const char * const pick_choices  = "top-k, window4 (side of a window), uniform, grid3 (every third), mass0.95 (share of the scores), cover";
static const char * const field_choices = "k=, drop=, score=, pick=, weigh, merge, recall=, cells=";

static std::invalid_argument bad(const std::string & key, const std::string & value, const std::string & expected) {
    return std::invalid_argument(key + " = \"" + value + "\" is not understood; " + expected);
}

static std::string trim(const std::string & text) {
    const char * space = " \t\r\n";
    const auto   begin = text.find_first_not_of(space);

    return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(space) - begin + 1);
}

// trimmed; at least one
static std::vector<std::string> split(const std::string & text, char separator) {
    std::vector<std::string> items;
    for (size_t begin = 0, end = 0; end != std::string::npos; begin = end + 1) {
        end = text.find(separator, begin);
        items.push_back(trim(text.substr(begin, end - begin)));
    }
    return items;
}

// All of `text`, made of `alphabet` (standard libraries differ in what else they take: "0x10", "inf", "-1" as unsigned).
template <typename T>
static bool read_number(const std::string & text, const char * alphabet, T & value) {
    std::istringstream stream(text);
    stream.imbue(std::locale::classic());

    return text.find_first_not_of(alphabet) == std::string::npos && stream >> value && stream.eof();
}

static bool read_real(const std::string & text, float & value) {
    return read_number(text, "0123456789.+-eE", value);
}

template <typename T>
static bool read_digits(const std::string & text, T & value) {
    return read_number(text, "0123456789", value);
}

static float parse_real(const std::string & key, const std::string & text) {
    float value;
    if (!read_real(text, value)) {
        throw bad(key, text, "a number, as 0.5");
    }
    return value;
}

static int32_t parse_layer(const std::string & text, int32_t n_layer) {
    int32_t layer;
    if (read_number(text, "0123456789+-", layer)) {
        return layer;
    }

    float percent;
    if (text.empty() || text.back() != '%' || !read_real(text.substr(0, text.size() - 1), percent) || percent < 0.0f || percent > 100.0f) {
        throw bad("k", text, "a layer, as 2, or a share of the layers, as 25%");
    }
    return std::max<int32_t>(1, std::min<int32_t>(n_layer - 1, std::lround(n_layer*(double) percent/100.0)));
}

static void parse_score(const std::string & text, pyfastv_cut & cut) {
    const auto & random = score_names[PYFASTV_SCORE_RANDOM];
    const auto   found  = std::find(score_names.begin(), score_names.end(), text);

    if (found != score_names.end()) {
        cut.score = (pyfastv_score) (found - score_names.begin());
    } else if (text.rfind(random, 0) == 0 && read_digits(text.substr(random.size()), cut.seed)) {
        cut.score = PYFASTV_SCORE_RANDOM;
    } else {
        throw bad("score", text, std::string("one of: ") + score_choices);
    }
}

// the number behind a pick's name
static bool read_pick_number(pyfastv_pick pick, const std::string & text, pyfastv_cut & cut) {
    switch (pick) {
        case PYFASTV_PICK_TOP_K:   break;
        case PYFASTV_PICK_WINDOW:  return read_digits(text, cut.window);
        case PYFASTV_PICK_UNIFORM: break;
        case PYFASTV_PICK_GRID:    return read_digits(text, cut.stride);
        case PYFASTV_PICK_MASS:    return read_real(text, cut.mass);
        case PYFASTV_PICK_COVER:   break;
    }
    return text.empty();
}

static void parse_pick(const std::string & text, pyfastv_cut & cut) {
    for (size_t i = 0; i < pick_names.size(); ++i) {
        const auto & name = pick_names[i];
        if (text.rfind(name, 0) == 0 && read_pick_number((pyfastv_pick) i, text.substr(name.size()), cut)) {
            cut.pick = (pyfastv_pick) i;
            return;
        }
    }
    throw bad("pick", text, std::string("one of: ") + pick_choices);
}

static int32_t parse_cells(const std::string & text) {
    int32_t n_cells;
    if (text == "auto") {
        return -1;
    }
    if (!read_digits(text, n_cells)) {
        throw bad("cells", text, "a number of KV cells, as 2048, or auto");
    }
    return n_cells;
}

// returns the field's key
static std::string parse_field(const std::string & field, int32_t n_layer, pyfastv_params & params, pyfastv_cut & cut) {
    const auto equals = field.find('=');
    const auto key    = trim(field.substr(0, equals));
    const auto value  = equals == std::string::npos ? "" : trim(field.substr(equals + 1));

    if (field == "merge") {
        cut.merge = true;
    } else if (field == "weigh") {
        cut.weigh = true;
    } else if (key == "k") {
        cut.layer = parse_layer(value, n_layer);
    } else if (key == "drop") {
        cut.drop = parse_real(key, value);
    } else if (key == "score") {
        parse_score(value, cut);
    } else if (key == "pick") {
        parse_pick(value, cut);
    } else if (key == "recall") {
        params.recall = parse_real(key, value);
    } else if (key == "cells") {
        params.n_cells = parse_cells(value);
    } else {
        throw std::invalid_argument("\"" + field + "\" is none of " + field_choices);
    }
    return key;
}

pyfastv_params parse_params(const std::string & text, int32_t n_layer) {
    const auto cuts   = split(text, ';');
    auto       params = pyfastv_default_params();

    if (cuts.size() > PYFASTV_MAX_CUTS) {
        throw std::invalid_argument("\"" + text + "\" has " + std::to_string(cuts.size()) + " cuts; at most " + std::to_string(PYFASTV_MAX_CUTS));
    }

    params.n_cuts = (int32_t) cuts.size();
    std::fill_n(params.cuts, cuts.size(), params.cuts[0]);

    std::set<std::string> seen_anywhere; // recall, cells

    for (size_t i = 0; i < cuts.size(); ++i) {
        if (cuts[i].empty()) {
            throw std::invalid_argument("cut " + std::to_string(i + 1) + " of \"" + text + "\" is empty; fields: " + field_choices);
        }

        std::set<std::string> seen;

        for (const auto & field : split(cuts[i], ',')) {
            const auto key = parse_field(field, n_layer, params, params.cuts[i]);

            auto & keys = key == "recall" || key == "cells" ? seen_anywhere : seen;
            if (!keys.insert(key).second) {
                throw std::invalid_argument("\"" + field + "\": " + key + " is given twice");
            }
        }
    }

    return params;
}

// the fewest digits that are read as the same number
static std::string to_text(float value) {
    std::string text;
    for (int digits = 1; digits <= 9; ++digits) {
        std::ostringstream stream;
        stream.imbue(std::locale::classic());
        stream.precision(digits);
        stream << value;

        text = stream.str();

        float again;
        if (read_real(text, again) && again == value) {
            break;
        }
    }
    return text;
}

static std::string to_text(const pyfastv_cut & cut) {
    auto text = "k=" + std::to_string(cut.layer) + ",drop=" + to_text(cut.drop) + ",score=" + score_names[cut.score];

    if (cut.score == PYFASTV_SCORE_RANDOM) {
        text += std::to_string(cut.seed);
    }

    text += ",pick=" + pick_names[cut.pick];

    switch (cut.pick) {
        case PYFASTV_PICK_TOP_K:   break;
        case PYFASTV_PICK_WINDOW:  text += std::to_string(cut.window); break;
        case PYFASTV_PICK_UNIFORM: break;
        case PYFASTV_PICK_GRID:    text += std::to_string(cut.stride); break;
        case PYFASTV_PICK_MASS:    text += to_text(cut.mass); break;
    }
    return text + (cut.weigh ? ",weigh" : "") + (cut.merge ? ",merge" : "");
}

std::string to_text(const pyfastv_params & params) {
    std::string text;
    for (int32_t i = 0; i < params.n_cuts; ++i) {
        text += (i > 0 ? ";" : "") + to_text(params.cuts[i]);
    }
    return text + ",recall=" + to_text(params.recall) + ",cells=" + (params.n_cells < 0 ? "auto" : std::to_string(params.n_cells));
}

} // namespace pyfastv
