#pragma once

#include "pyfastv.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

// Schedules as values, and their language, which pyfastv_parse() describes. All throw std::invalid_argument that names what
// is wrong, the value and the choices or the limit.
namespace pyfastv {

// As it was written: numbers are not yet rounded to floats, layers not yet counted. As it is made here it is FastV's own, which
// says what a cut is that names a part of its rule (score, pick, weigh, merge); one that names none is default_cut().
struct cut_setting {
    int32_t               layer = 2;
    std::optional<double> percent; // of the layers, in place of a number
    double                drop  = 0.5;
    int32_t               score = 0; // rows of settings/rules.h, and what is behind their names
    double                score_number = 0;
    int32_t               pick  = 0;
    double                pick_number = 0;
    bool                  weigh = false;
    bool                  merge = false;
};

struct schedule_setting {
    std::string              preset; // its name, if the text was nothing else
    std::vector<cut_setting> cuts;
    double                   recall  = 0.025;
    int32_t                  n_cells = 0; // -1: auto
};

// Checked as far as that is possible without a model. "off" (is_off() in settings/text.h) is the caller's business.
schedule_setting parse_schedule(const std::string & text);

// by the names that parse_schedule() takes
std::vector<std::string> preset_names();

void check(const schedule_setting & schedule);

// what a cut is of which nothing is said: the recommended rule
const cut_setting & default_cut();

// the parts of a cut's rule that were named
struct rule_setting {
    std::optional<std::string> score;
    std::optional<std::string> pick;
    std::optional<bool>        weigh;
    std::optional<bool>        merge;
};

cut_setting parse_cut(const std::string & layer, double drop, const rule_setting & rule);

std::string layer_text(const cut_setting & cut); // "2", "25%"
std::string score_text(const cut_setting & cut); // "random7"
std::string pick_text (const cut_setting & cut); // "window4"

pyfastv_params default_params();

// for a model of so many layers; not validated
pyfastv_params to_params(const schedule_setting & schedule, int32_t n_layer);

// Valid parameters in full, for parse_schedule() to read again. What a cut's score and pick do not use is left out.
std::string to_text(const pyfastv_params & params);

void validate_cut(const pyfastv_cut & cut); // all but its layer
void validate(const pyfastv_params & params, int32_t n_layer);

} // namespace pyfastv
