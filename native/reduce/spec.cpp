#include "reduce/spec.h"

#include <algorithm>
#include <cmath>
#include <locale>
#include <set>
#include <sstream>
#include <stdexcept>
#include <vector>

namespace pyfastv {
namespace {

struct method_info {
    const char *           name;
    std::set<std::string>  fields;
    const char *           example;
};

// by reduce_method
const std::vector<method_info> methods = {
    { "pool",     { "window", "keep" },   "pool,window=2 or pool,keep=144" },
    { "stride",   { "keep" },             "stride,keep=144" },
    { "merge",    { "keep", "scale" },    "merge,keep=288 or merge,keep=288,scale" },
    { "divprune", { "keep" },             "divprune,keep=288" },
    { "cdpruner", { "keep" },             "cdpruner,keep=144" },
    { "vidcom2",  { "keep" },             "vidcom2,keep=0.25" },
    { "evs",      { "drop" },             "evs,drop=0.7" },
    { "pllava",   { "frames", "window" }, "pllava,frames=4,window=2" },
};

std::string trim(const std::string & text) {
    const auto begin = text.find_first_not_of(" \t\r\n");
    return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

std::invalid_argument bad(const std::string & key, const std::string & value, const std::string & expected) {
    return std::invalid_argument(key + " = \"" + value + "\" is not understood; " + expected);
}

// standard libraries differ in what else they take
template <typename T>
bool read(const std::string & text, const char * alphabet, T & value) {
    std::istringstream stream(text);
    stream.imbue(std::locale::classic());

    return text.find_first_not_of(alphabet) == std::string::npos && stream >> value && stream.eof();
}

double parse_keep(const std::string & text) {
    double value;
    if (!read(text, "0123456789.+-eE", value) || !(value > 0) || (value >= 1 && (value != std::floor(value) || value > 1e9))) {
        throw bad("keep", text, "a number of tokens, at least 1, as 288, or a share of them above 0 and below 1, as 0.5");
    }
    return value;
}

double parse_drop(const std::string & text) {
    double value;
    if (!read(text, "0123456789.+-eE", value) || !(value >= 0 && value < 1)) {
        throw bad("drop", text, "a share of the tokens, at least 0 and below 1, as 0.7");
    }
    return value;
}

int32_t parse_count(const std::string & key, const std::string & text, const std::string & what) {
    int32_t value;
    if (!read(text, "0123456789", value) || value < 1) {
        throw bad(key, text, what + ", at least 1");
    }
    return value;
}

void parse_field(const std::string & key, const std::string & value, reducer & res) {
    if (key == "keep") {
        res.keep = parse_keep(value);
    } else if (key == "drop") {
        res.drop = parse_drop(value);
    } else if (key == "window") {
        res.window = parse_count(key, value, "the side of a window in patches");
    } else {
        res.frames = parse_count(key, value, "a number of frames");
    }
}

// the fewest digits that are read as the same number
std::string number(double value) {
    std::string text;
    for (int digits = 1; digits <= 17; ++digits) {
        std::ostringstream stream;
        stream.imbue(std::locale::classic());
        stream.precision(digits);
        stream << value;
        text = stream.str();

        double again;
        if (read(text, "0123456789.+-eE", again) && again == value) {
            break;
        }
    }
    return text;
}

} // namespace

reducer parse_reducer(const std::string & text) {
    std::vector<std::string> items;
    for (size_t begin = 0, end = 0; end != std::string::npos; begin = end + 1) {
        end = text.find(',', begin);
        items.push_back(trim(text.substr(begin, end - begin)));
    }

    std::string names;
    auto info = methods.end();
    for (auto it = methods.begin(); it != methods.end(); ++it) {
        names += (names.empty() ? "" : ", ") + std::string(it->name);
        info = items[0] == it->name ? it : info;
    }
    if (info == methods.end()) {
        throw std::invalid_argument("\"" + items[0] + "\" is no reducer; one of: " + names);
    }

    reducer res = {};
    res.method = (reduce_method) (info - methods.begin());

    std::set<std::string> seen;
    for (size_t i = 1; i < items.size(); ++i) {
        const auto equals = items[i].find('=');
        const auto key    = trim(items[i].substr(0, equals));
        const bool flag   = key == "scale" || key == "renumber";

        if ((key != "renumber" && info->fields.count(key) == 0) || flag != (equals == std::string::npos)) {
            throw std::invalid_argument("\"" + items[i] + "\" is no field of " + info->name + ": " + info->example + ", and renumber");
        }
        if (!seen.insert(key).second) {
            throw std::invalid_argument("\"" + items[i] + "\": " + key + " is given twice");
        }
        if (flag) {
            (key == "scale" ? res.scale : res.renumber) = true;
        } else {
            parse_field(key, trim(items[i].substr(equals + 1)), res);
        }
    }

    const bool pools = res.method == reduce_method::pool;
    if (pools && seen.count("keep") && seen.count("window")) {
        throw std::invalid_argument("pool takes window= or keep=, not both");
    }
    const char * needed = info->fields.count("drop") ? "drop" : "keep";
    if (!pools && info->fields.count(needed) && seen.count(needed) == 0) {
        throw std::invalid_argument(std::string(info->name) + " needs " + needed + "=, as in " + info->example);
    }
    return res;
}

std::string to_text(const reducer & how) {
    const auto & info = methods[(size_t) how.method];

    std::string text = info.name;
    if (info.fields.count("frames")) {
        text += ",frames=" + std::to_string(how.frames);
    }
    if (info.fields.count("window") && how.keep == 0) {
        text += ",window=" + std::to_string(how.window);
    }
    if (info.fields.count("keep") && how.keep != 0) {
        text += ",keep=" + number(how.keep);
    }
    if (info.fields.count("drop")) {
        text += ",drop=" + number(how.drop);
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
