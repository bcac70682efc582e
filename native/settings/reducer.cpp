#include "settings/reducer.h"

#include "settings/text.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <stdexcept>

namespace pyfastv {
namespace {

struct method_row {
    const char *             name;
    std::vector<std::string> fields;
    const char *             example;
};

// by reduce_method
const std::vector<method_row> & methods() {
    static const std::vector<method_row> res = {
        { "pool",     { "window", "keep" },   "pool,window=2 or pool,keep=144" },
        { "stride",   { "keep" },             "stride,keep=144" },
        { "merge",    { "keep", "scale" },    "merge,keep=288 or merge,keep=288,scale" },
        { "divprune", { "keep" },             "divprune,keep=288" },
        { "cdpruner", { "keep" },             "cdpruner,keep=144" },
        { "vidcom2",  { "keep" },             "vidcom2,keep=0.25" },
        { "evs",      { "drop" },             "evs,drop=0.7" },
        { "pllava",   { "frames", "window" }, "pllava,frames=4,window=2" },
    };
    return res;
}

bool has_field(const method_row & row, const std::string & key) {
    return std::find(row.fields.begin(), row.fields.end(), key) != row.fields.end();
}

double parse_keep(const std::string & text) {
    const auto value = real_in(text);
    if (!value || !(*value > 0) || (*value >= 1 && (*value != std::floor(*value) || *value > 1e9))) {
        throw not_understood("keep", text, "a number of tokens, at least 1, as 288, or a share of them above 0 and below 1, as 0.5");
    }
    return *value;
}

double parse_drop(const std::string & text) {
    const auto value = real_in(text);
    if (!value || !(*value >= 0 && *value < 1)) {
        throw not_understood("drop", text, "a share of the tokens, at least 0 and below 1, as 0.7");
    }
    return *value;
}

int32_t parse_count(const setting_field & field, const std::string & what) {
    return parse_whole(field.key, *field.value, 1, std::numeric_limits<int32_t>::max(), what + ", at least 1");
}

void set(const setting_field & field, reducer & res) {
    if (field.is_flag("scale")) {
        res.scale = true;
    } else if (field.is_flag("renumber")) {
        res.renumber = true;
    } else if (field.is("keep")) {
        res.keep = parse_keep(*field.value);
    } else if (field.is("drop")) {
        res.drop = parse_drop(*field.value);
    } else if (field.is("window")) {
        res.window = parse_count(field, "the side of a window in patches");
    } else if (field.is("frames")) {
        res.frames = parse_count(field, "a number of frames");
    }
}

} // namespace

reducer parse_reducer(const std::string & text) {
    auto       fields = fields_of(text);
    const auto name   = fields[0];
    fields.erase(fields.begin());

    std::string names;
    for (const auto & row : methods()) {
        names += (names.empty() ? "" : ", ") + std::string(row.name);
    }
    const auto row = std::find_if(methods().begin(), methods().end(), [&](const method_row & row) { return name.text == row.name; });
    if (row == methods().end()) {
        throw std::invalid_argument("\"" + name.text + "\" is no reducer; one of: " + names);
    }

    reducer res = {};
    res.method = (reduce_method) (row - methods().begin());

    std::set<std::string> seen;
    for (const auto & field : fields) {
        const bool flag = field.key == "scale" || field.key == "renumber";
        if ((field.key != "renumber" && !has_field(*row, field.key)) || flag == field.value.has_value()) {
            throw std::invalid_argument("\"" + field.text + "\" is no field of " + row->name + ": " + row->example + ", and renumber");
        }
        seen.insert(field.key);
        set(field, res);
    }

    const bool pools = res.method == reduce_method::pool;
    if (pools && seen.count("keep") && seen.count("window")) {
        throw std::invalid_argument("pool takes window= or keep=, not both");
    }
    const char * needed = has_field(*row, "drop") ? "drop" : "keep";
    if (!pools && has_field(*row, needed) && seen.count(needed) == 0) {
        throw std::invalid_argument(std::string(row->name) + " needs " + needed + "=, as in " + row->example);
    }
    return res;
}

const char * name_of(reduce_method method) { return methods()[(size_t) method].name; }

const std::vector<std::string> & keys_of(reduce_method method) { return methods()[(size_t) method].fields; }

std::string to_text(const reducer & how) {
    const auto & row = methods()[(size_t) how.method];

    std::string text = row.name;
    if (has_field(row, "frames")) {
        text += ",frames=" + std::to_string(how.frames);
    }
    if (has_field(row, "window") && how.keep == 0) {
        text += ",window=" + std::to_string(how.window);
    }
    if (has_field(row, "keep") && how.keep != 0) {
        text += ",keep=" + to_text(how.keep);
    }
    if (has_field(row, "drop")) {
        text += ",drop=" + to_text(how.drop);
    }
    return text + (how.scale ? ",scale" : "") + (how.renumber ? ",renumber" : "");
}

size_t count_of(double keep, size_t n) {
    if (keep >= 1) {
        return std::min(n, (size_t) keep);
    }
    // a share such as 0.35 is no exact double, and n*share must not miss a half because of that
    const double exact = std::round((double) n*keep*1e6)/1e6;
    const double floor = std::floor(exact);
    const bool   up    = exact - floor > 0.5 || (exact - floor == 0.5 && std::fmod(floor, 2) == 1);

    return std::clamp<size_t>((size_t) floor + up, std::min<size_t>(1, n), n);
}

} // namespace pyfastv
