#include "settings/schedule.h"

#include "settings/rules.h"
#include "settings/text.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <iterator>
#include <limits>
#include <set>
#include <stdexcept>
#include <tuple>
#include <utility>

namespace pyfastv {
namespace {

constexpr const char * field_choices = "k=, drop=, score=, pick=, weigh, merge, recall=, cells=";

struct preset {
    const char * name;
    const char * text;
};

const std::vector<preset> presets = {
    { "recommended", "k=2,drop=0.5,score=question-max,pick=cover,weigh" },
    { "fastv",       "k=2,drop=0.5,score=last" },
    { "pyramiddrop", "k=25%,drop=0.5,score=last;k=50%,drop=0.75,score=last;k=75%,drop=0.875,score=last" },
    { "feather",     "k=25%,drop=0.5,score=last-no-rope,pick=grid3;k=50%,drop=0.75,score=last-no-rope" },
    { "vtw",         "k=50%,drop=1,score=none,recall=0" },
    { "zipvl",       "k=2,drop=0.9,score=question-mean,pick=mass0.95" },
};

template <typename T, typename F>
std::string joined(const T & items, F && name) {
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

std::optional<double> number_behind(const rule_number & number, const std::string & text) {
    if (text.empty() && number.optional) {
        return number.lowest;
    }
    if (number.kind == number_kind::share) {
        return real_in(text);
    }
    const auto whole = number.kind == number_kind::none || text.empty() || !isdigit((unsigned char) text[0]) ? std::nullopt : whole_in(text);
    return whole && *whole <= number.highest ? std::optional<double>((double) *whole) : std::nullopt;
}

// a row, and the number behind its name
template <typename T, size_t N>
std::pair<int32_t, double> parse_rule(const std::string & key, const std::string & text, const T (&rules)[N]) {
    for (size_t i = 0; i < N; ++i) {
        const std::string name   = rules[i].name;
        const auto        number = text.rfind(name, 0) == 0 ? number_behind(rules[i].number, text.substr(name.size())) : std::nullopt;
        if (number) {
            return { (int32_t) i, *number };
        }
    }
    throw not_understood(key, text, "one of: " + joined(rules, [](const T & rule) { return rule.shown; }));
}

void parse_score(const std::string & text, cut_setting & cut) { std::tie(cut.score, cut.score_number) = parse_rule("score", text, score_rules); }
void parse_pick (const std::string & text, cut_setting & cut) { std::tie(cut.pick,  cut.pick_number)  = parse_rule("pick",  text, pick_rules); }

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

bool is_of_rule(const setting_field & field) {
    return field.key == "score" || field.key == "pick" || field.key == "weigh" || field.key == "merge";
}

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
        const auto fields = fields_of(cuts[i]);
        const bool named  = std::any_of(fields.begin(), fields.end(), is_of_rule);
        auto &     cut    = res.cuts.emplace_back(named ? cut_setting() : default_cut());
        for (const auto & field : fields) {
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
    res.preset = fields.empty() ? name : "";
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

// of a rule that a program has named by its row
template <typename T, size_t N>
void check_rule(const std::string & key, int32_t row, double value, const T (&rules)[N]) {
    if (row < 0 || row >= (int32_t) N) {
        throw std::invalid_argument(key + " = " + std::to_string(row) + " is no rule; there are 0 to " + std::to_string(N - 1));
    }
    const auto & number = rules[row].number;
    // written so that NaN fails
    if (number.kind == number_kind::whole && !(value >= number.lowest && value <= number.highest && value == std::floor(value))) {
        out_of_range(number.name, to_text(value), "a whole number, at least " + to_text(number.lowest));
    }
    if (number.kind == number_kind::share && !((float) value > number.lowest && (float) value <= number.highest)) {
        out_of_range(number.name, to_text((float) value), to_text(number.lowest) + " < " + number.name + " <= " + to_text(number.highest));
    }
}

std::string rule_text(const rule & rule, double number) {
    switch (rule.number.kind) {
        case number_kind::none:  return rule.name;
        case number_kind::whole: return rule.name + std::to_string((int64_t) number);
        case number_kind::share: return rule.name + to_text((float) number);
    }
    return rule.name;
}

pyfastv_cut to_cut(const cut_setting & from) {
    pyfastv_cut res = {};
    res.layer        = from.layer;
    res.drop         = (float) from.drop;
    res.score        = from.score;
    res.score_number = from.score_number;
    res.pick         = from.pick;
    res.pick_number  = from.pick_number;
    res.weigh        = from.weigh;
    res.merge        = from.merge;
    return res;
}

cut_setting to_setting(const pyfastv_cut & from) {
    cut_setting res;
    res.layer        = from.layer;
    res.drop         = from.drop;
    res.score        = from.score;
    res.score_number = from.score_number;
    res.pick         = from.pick;
    res.pick_number  = from.pick_number;
    res.weigh        = from.weigh;
    res.merge        = from.merge;
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

std::vector<std::string> preset_names() {
    std::vector<std::string> res;
    std::transform(presets.begin(), presets.end(), std::back_inserter(res), [](const preset & p) { return p.name; });
    return res;
}

const cut_setting & default_cut() {
    static const cut_setting cut = parse_cuts(presets.front().text).cuts.front();
    return cut;
}

cut_setting parse_cut(const std::string & layer, double drop, const rule_setting & rule) {
    const bool named = rule.score || rule.pick || rule.weigh || rule.merge;

    cut_setting res = named ? cut_setting() : default_cut();
    parse_layer(layer, res);
    if (rule.score) {
        parse_score(*rule.score, res);
    }
    if (rule.pick) {
        parse_pick(*rule.pick, res);
    }
    res.weigh = rule.weigh.value_or(res.weigh);
    res.merge = rule.merge.value_or(res.merge);
    res.drop  = drop;
    check({ "", { res } });
    return res;
}

std::string layer_text(const cut_setting & cut) { return cut.percent ? to_text((float) *cut.percent) + "%" : std::to_string(cut.layer); }

std::string score_text(const cut_setting & cut) { return rule_text(score_rules[cut.score], cut.score_number); }
std::string pick_text (const cut_setting & cut) { return rule_text(pick_rules[cut.pick],   cut.pick_number); }

pyfastv_params default_params() {
    pyfastv_params res = {};
    res.size   = sizeof(res);
    res.n_cuts = 1;
    res.recall = (float) schedule_setting().recall;
    for (auto & cut : res.cuts) {
        cut = to_cut(default_cut());
    }
    return res;
}

pyfastv_params to_params(const schedule_setting & schedule, int32_t n_layer) {
    auto res = default_params();
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
    // written so that NaN fails
    if (!(cut.drop >= 0.0f && cut.drop <= 1.0f)) {
        out_of_range("drop", to_text(cut.drop), "0 <= drop <= 1");
    }
    check_rule("score", cut.score, cut.score_number, score_rules);
    check_rule("pick",  cut.pick,  cut.pick_number,  pick_rules);
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
