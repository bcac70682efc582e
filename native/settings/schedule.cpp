#include "settings/schedule.h"

#include "settings/rules.h"
#include "settings/text.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <stdexcept>

namespace pyfastv {
namespace {

constexpr const char * field_choices = "k=, drop=, score=, pick=, weigh, merge, recall=, cells=";

struct preset {
    const char * name;
    const char * text;
};

const std::vector<preset> presets = {
    { "recommended", "k=2,drop=0.5,score=question-max,pick=cover,weigh" },
    { "fastv",       "k=2,drop=0.5" },
    { "pyramiddrop", "k=25%,drop=0.5;k=50%,drop=0.75;k=75%,drop=0.875" },
    { "feather",     "k=25%,drop=0.5,score=last-no-rope,pick=grid3;k=50%,drop=0.75,score=last-no-rope" },
    { "vtw",         "k=50%,drop=1,score=none,recall=0" },
    { "zipvl",       "k=2,drop=0.9,score=question-mean,pick=mass0.95" },
};

template <typename T, typename F>
std::string joined(const std::vector<T> & items, F && name) {
    std::string res;
    for (const auto & item : items) {
        res += (res.empty() ? "" : ", ") + std::string(name(item));
    }
    return res;
}

[[noreturn]] void out_of_range(const std::string & name, const std::string & value, const std::string & range) {
    throw std::invalid_argument(name + " = " + value + " is out of range: " + range);
}

//
// fields
//

void parse_layer(const std::string & text, cut_setting & cut) {
    const auto whole = whole_in(text);
    if (whole && *whole >= std::numeric_limits<int32_t>::min() && *whole <= std::numeric_limits<int32_t>::max()) {
        cut.layer   = (int32_t) *whole;
        cut.percent = {};
        return;
    }
    const auto percent = text.empty() || text.back() != '%' ? std::nullopt : real_in(text.substr(0, text.size() - 1));
    if (!percent || !(*percent >= 0.0 && *percent <= 100.0)) {
        throw not_understood("k", text, "a layer, as 2, or a share of the layers, as 25%");
    }
    cut.percent = percent;
}

void parse_score(const std::string & text, cut_setting & cut) {
    const auto & rules = score_rules();
    for (size_t i = 0; i < rules.size(); ++i) {
        const std::string name = rules[i].name;
        if (text != name && !(rules[i].takes_seed && text.rfind(name, 0) == 0)) {
            continue;
        }
        const auto digits = text.substr(name.size());
        const auto seed   = digits.empty() ? std::optional<int64_t>(0) : isdigit((unsigned char) digits[0]) ? whole_in(digits) : std::nullopt;
        if (seed && *seed <= std::numeric_limits<uint32_t>::max()) {
            cut.score = (pyfastv_score) i;
            cut.seed  = (uint32_t) *seed;
            return;
        }
    }
    throw not_understood("score", text, "one of: " + joined(rules, [](const score_rule & r) { return r.shown; }));
}

void parse_pick(const std::string & text, cut_setting & cut) {
    const auto & rules = pick_rules();
    for (size_t i = 0; i < rules.size(); ++i) {
        const std::string name = rules[i].name;
        if (text.rfind(name, 0) != 0) {
            continue;
        }
        const auto rest = text.substr(name.size());

        std::optional<double> number;
        switch (rules[i].number) {
            case pick_number::none:  number = rest.empty() ? std::optional<double>(0) : std::nullopt; break;
            case pick_number::share: number = real_in(rest); break;
            case pick_number::whole:
                if (const auto whole = rest.empty() || !isdigit((unsigned char) rest[0]) ? std::nullopt : whole_in(rest)) {
                    number = *whole <= std::numeric_limits<int32_t>::max() ? std::optional<double>((double) *whole) : std::nullopt;
                }
                break;
        }
        if (number) {
            cut.pick   = (pyfastv_pick) i;
            cut.number = *number;
            return;
        }
    }
    throw not_understood("pick", text, "one of: " + joined(rules, [](const pick_rule & r) { return r.shown; }));
}

int32_t parse_cells(const std::string & text) {
    if (text == "auto") {
        return -1;
    }
    return parse_whole("cells", text, 0, std::numeric_limits<int32_t>::max(), "a number of KV cells, as 2048, or auto");
}

void set(const setting_field & field, schedule_setting & schedule, cut_setting & cut) {
    if (field.is_flag("merge")) {
        cut.merge = true;
    } else if (field.is_flag("weigh")) {
        cut.weigh = true;
    } else if (field.is("k")) {
        parse_layer(*field.value, cut);
    } else if (field.is("drop")) {
        cut.drop = parse_real(field.key, *field.value);
    } else if (field.is("score")) {
        parse_score(*field.value, cut);
    } else if (field.is("pick")) {
        parse_pick(*field.value, cut);
    } else if (field.is("recall")) {
        schedule.recall = parse_real(field.key, *field.value);
    } else if (field.is("cells")) {
        schedule.n_cells = parse_cells(*field.value);
    } else {
        throw std::invalid_argument("\"" + field.text + "\" is none of " + field_choices);
    }
}

bool is_of_all(const setting_field & field) { return field.key == "recall" || field.key == "cells"; }

schedule_setting parse_cuts(const std::string & text) {
    const auto cuts = split(text, ';');
    if (cuts.size() > PYFASTV_MAX_CUTS) {
        throw std::invalid_argument("\"" + text + "\" has " + std::to_string(cuts.size()) + " cuts; at most " + std::to_string(PYFASTV_MAX_CUTS));
    }
    schedule_setting      res;
    std::set<std::string> seen; // recall, cells
    for (size_t i = 0; i < cuts.size(); ++i) {
        if (cuts[i].empty()) {
            throw std::invalid_argument("cut " + std::to_string(i + 1) + " of \"" + text + "\" is empty; fields: " + field_choices);
        }
        auto & cut = res.cuts.emplace_back();
        for (const auto & field : fields_of(cuts[i])) {
            if (is_of_all(field) && !seen.insert(field.key).second) {
                throw std::invalid_argument("\"" + field.text + "\": " + field.key + " is given twice");
            }
            set(field, res, cut);
        }
    }
    return res;
}

// a preset, and fields that differ from it; nothing: the text begins with none
std::optional<schedule_setting> parse_preset(const std::string & text) {
    const auto name  = lower(trim(text.substr(0, text.find_first_of(",;"))));
    const auto found = std::find_if(presets.begin(), presets.end(), [&](const preset & p) { return name == p.name; });
    if (found == presets.end()) {
        return {};
    }
    if (text.find(';') != std::string::npos) {
        throw std::invalid_argument("\"" + text + "\": " + name + " is a whole schedule: no other cut can follow it");
    }
    auto res    = parse_cuts(found->text);
    auto fields = fields_of(text);
    fields.erase(fields.begin());
    for (const auto & field : fields) {
        if (res.cuts.size() > 1 && !is_of_all(field)) {
            throw std::invalid_argument("\"" + field.text + "\": " + name + " has " + std::to_string(res.cuts.size()) +
                    " cuts: only recall= and cells= can be given with it");
        }
        set(field, res, res.cuts[0]);
    }
    return res;
}

//
// limits
//

[[noreturn]] void refuse_layer(const std::string & layer, const std::string & before) {
    throw std::invalid_argument("k = " + layer + " follows k = " + before + ": every cut must be at a later layer than the one before");
}

void check_drop(float drop, float before) {
    if (drop < before) {
        throw std::invalid_argument("drop = " + to_text(drop) + " follows drop = " + to_text(before) +
                ": drop is a share of all tokens of a picture, so it cannot fall from cut to cut");
    }
}

void check_of_all(float recall, int32_t n_cells) {
    if (!(recall >= 0.0f && recall <= 1.0f)) {
        out_of_range("recall", to_text(recall), "0 <= recall <= 1");
    }
    if (n_cells < -1) {
        out_of_range("cells", std::to_string(n_cells), "at least 1, 0 for as many as stage 0, or \"auto\"");
    }
}

double number_of(const pyfastv_cut & cut) {
    switch (cut.pick) {
        case PYFASTV_PICK_WINDOW: return cut.window;
        case PYFASTV_PICK_GRID:   return cut.stride;
        case PYFASTV_PICK_MASS:   return cut.mass;
        default:                  return 0;
    }
}

// of an enumeration that a program has set: what is there may be none of its values
template <typename T>
int value_of(const T & value) {
    static_assert(sizeof(T) == sizeof(int));
    int res;
    memcpy(&res, &value, sizeof(res));
    return res;
}

pyfastv_cut to_cut(const cut_setting & from) {
    auto res = pyfastv_default_params().cuts[0];
    res.layer = from.layer;
    res.drop  = (float) from.drop;
    res.score = from.score;
    res.seed  = from.seed;
    res.pick  = from.pick;
    res.weigh = from.weigh;
    res.merge = from.merge;
    switch (from.pick) {
        case PYFASTV_PICK_WINDOW: res.window = (int32_t) from.number; break;
        case PYFASTV_PICK_GRID:   res.stride = (int32_t) from.number; break;
        case PYFASTV_PICK_MASS:   res.mass   = (float)   from.number; break;
        default:                  break;
    }
    return res;
}

cut_setting to_setting(const pyfastv_cut & from) {
    cut_setting res;
    res.layer  = from.layer;
    res.drop   = from.drop;
    res.score  = from.score;
    res.seed   = rule_of(from.score).takes_seed ? from.seed : 0;
    res.pick   = from.pick;
    res.number = number_of(from);
    res.weigh  = from.weigh;
    res.merge  = from.merge;
    return res;
}

} // namespace

schedule_setting parse_schedule(const std::string & text) {
    const auto preset = parse_preset(text);
    const auto word   = trim(text);
    if (!preset && word != "weigh" && word != "merge" && word.find_first_of("=,;") == std::string::npos) {
        throw std::invalid_argument("\"" + text + "\" is no schedule: one of " + joined(presets, [](const auto & p) { return p.name; }) +
                ", off, or fields: " + field_choices);
    }
    const auto res = preset ? *preset : parse_cuts(text);
    check(res);
    return res;
}

cut_setting parse_cut(const std::string & layer, double drop, const std::string & score, const std::string & pick) {
    cut_setting res;
    parse_layer(layer, res);
    parse_score(score, res);
    parse_pick(pick, res);
    res.drop = drop;
    check({ { res } });
    return res;
}

std::string layer_text(const cut_setting & cut) { return cut.percent ? to_text((float) *cut.percent) + "%" : std::to_string(cut.layer); }

std::string score_text(const cut_setting & cut) {
    const auto & rule = rule_of(cut.score);
    return rule.name + (rule.takes_seed ? std::to_string(cut.seed) : "");
}

std::string pick_text(const cut_setting & cut) {
    const auto & rule = rule_of(cut.pick);
    switch (rule.number) {
        case pick_number::none:  return rule.name;
        case pick_number::whole: return rule.name + std::to_string((int64_t) cut.number);
        case pick_number::share: return rule.name + to_text((float) cut.number);
    }
    return rule.name;
}

pyfastv_params to_params(const schedule_setting & schedule, int32_t n_layer) {
    auto res = pyfastv_default_params();
    res.n_cuts  = (int32_t) schedule.cuts.size();
    res.recall  = (float) schedule.recall;
    res.n_cells = schedule.n_cells;
    for (size_t c = 0; c < schedule.cuts.size(); ++c) {
        const auto & cut = schedule.cuts[c];
        res.cuts[c] = to_cut(cut);
        if (cut.percent) {
            res.cuts[c].layer = std::max<int32_t>(1, std::min<int32_t>(n_layer - 1, std::lround(n_layer*(*cut.percent)/100.0)));
        }
    }
    return res;
}

std::string to_text(const pyfastv_params & params) {
    std::string text;
    for (int32_t i = 0; i < params.n_cuts; ++i) {
        const auto cut = to_setting(params.cuts[i]);
        text += (i > 0 ? ";" : "") + ("k=" + layer_text(cut)) + ",drop=" + to_text((float) cut.drop) + ",score=" + score_text(cut) + ",pick=" + pick_text(cut) +
            (cut.weigh ? ",weigh" : "") + (cut.merge ? ",merge" : "");
    }
    return text + ",recall=" + to_text(params.recall) + ",cells=" + (params.n_cells < 0 ? "auto" : std::to_string(params.n_cells));
}

void check(const schedule_setting & schedule) {
    const auto & cuts = schedule.cuts;
    for (size_t c = 0; c < cuts.size(); ++c) {
        if (!cuts[c].percent && cuts[c].layer < 1) {
            out_of_range("k", std::to_string(cuts[c].layer), "1 <= k");
        }
        validate_cut(to_cut(cuts[c]));
        if (c == 0) {
            continue;
        }
        const auto & before = cuts[c - 1];
        // a number and a share can be compared where the number of layers is known
        if (before.percent && cuts[c].percent ? *before.percent >= *cuts[c].percent : !before.percent && !cuts[c].percent && before.layer >= cuts[c].layer) {
            refuse_layer(layer_text(cuts[c]), layer_text(before));
        }
        check_drop((float) cuts[c].drop, (float) before.drop);
    }
    check_of_all((float) schedule.recall, schedule.n_cells);
}

void validate_cut(const pyfastv_cut & cut) {
    const int score = value_of(cut.score), pick = value_of(cut.pick);

    // written so that NaN fails
    if (!(cut.drop >= 0.0f && cut.drop <= 1.0f)) {
        out_of_range("drop", to_text(cut.drop), "0 <= drop <= 1");
    }
    if (score < 0 || score >= (int) score_rules().size()) {
        throw std::invalid_argument("score = " + std::to_string(score) + " is no pyfastv_score");
    }
    if (pick < 0 || pick >= (int) pick_rules().size()) {
        throw std::invalid_argument("pick = " + std::to_string(pick) + " is no pyfastv_pick");
    }
    const auto &      rule   = rule_of(cut.pick);
    const double      number = number_of(cut);
    const std::string name   = rule.number_name;
    if (rule.number == pick_number::whole && !(number >= 1)) {
        out_of_range(name, to_text((float) number), "at least 1");
    }
    if (rule.number == pick_number::share && !(number > 0 && number <= 1)) {
        out_of_range(name, to_text((float) number), "0 < " + name + " <= 1");
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
            refuse_layer(std::to_string(cut.layer), std::to_string(params.cuts[c - 1].layer));
        }
        if (c > 0) {
            check_drop(cut.drop, params.cuts[c - 1].drop);
        }
    }
    check_of_all(params.recall, params.n_cells);
}

} // namespace pyfastv
