#include "turbo/params.h"

#include <cmath>
#include <locale>
#include <set>
#include <sstream>
#include <stdexcept>

namespace pyfastv {
namespace {

std::string trim(const std::string & text) {
    const char * space = " \t\r\n";
    const auto   begin = text.find_first_not_of(space);

    return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(space) - begin + 1);
}

// all of `text`, made of `alphabet`
template <typename T>
bool read_number(const std::string & text, const char * alphabet, T & value) {
    std::istringstream stream(text);
    stream.imbue(std::locale::classic());

    return text.find_first_not_of(alphabet) == std::string::npos && stream >> value && stream.eof();
}

float parse_real(const std::string & key, const std::string & text) {
    float value;
    if (!read_number(text, "0123456789.+-eE", value)) {
        throw std::invalid_argument(key + " = \"" + text + "\" is not understood; a number, as 0.5");
    }
    return value;
}

int32_t parse_integer(const std::string & key, const std::string & text, const char * expected) {
    int32_t value;
    if (!read_number(text, "0123456789+-", value)) {
        throw std::invalid_argument(key + " = \"" + text + "\" is not understood; " + expected);
    }
    return value;
}

void parse_layers(const std::string & text, pyfastv_turbo_params & params) {
    const char * expected = "the first and the last block, as 2-20";
    const auto   dash     = text.find('-');

    if (dash == std::string::npos || text.find_first_not_of("0123456789-") != std::string::npos) {
        throw std::invalid_argument("layers = \"" + text + "\" is not understood; " + expected);
    }
    params.first_layer = parse_integer("layers", text.substr(0, dash), expected);
    params.last_layer  = parse_integer("layers", text.substr(dash + 1), expected);
}

std::string number(float value) {
    std::ostringstream stream;
    stream.imbue(std::locale::classic());
    stream << value;
    return stream.str();
}

} // namespace

pyfastv_turbo_params parse_turbo(const std::string & text) {
    auto res = pyfastv_turbo_default_params();

    std::set<std::string> seen;

    for (size_t begin = 0, end = 0; end != std::string::npos; begin = end + 1) {
        end = text.find(',', begin);

        const auto field  = trim(text.substr(begin, end == std::string::npos ? end : end - begin));
        const auto equals = field.find('=');
        const auto key    = trim(field.substr(0, equals));
        const auto value  = equals == std::string::npos ? "" : trim(field.substr(equals + 1));

        if (!seen.insert(key).second) {
            throw std::invalid_argument("\"" + field + "\": " + key + " is given twice");
        }
        if (field == "once") {
            res.once = true;
        } else if (field == "renumber") {
            res.renumber = true;
        } else if (key == "share" && equals != std::string::npos) {
            res.share = parse_real(key, value);
        } else if (key == "r" && equals != std::string::npos) {
            res.r = parse_integer(key, value, "a number of tokens, as 16");
        } else if (key == "alpha" && equals != std::string::npos) {
            res.alpha = parse_real(key, value);
        } else if (key == "layers" && equals != std::string::npos) {
            parse_layers(value, res);
        } else {
            throw std::invalid_argument("\"" + field + "\" is none of share=, r=, alpha=, layers=, once, renumber");
        }
    }

    if (seen.count("r")) {
        if (seen.count("share")) {
            throw std::invalid_argument("\"" + text + "\": share= and r= exclude each other");
        }
        if (res.r < 1) {
            throw std::invalid_argument("r = " + std::to_string(res.r) + " is out of range; r >= 1");
        }
        res.share = 0;
    } else if (res.share == 0.0f) {
        throw std::invalid_argument("share = 0 is out of range; 0 < share < 1");
    }
    return res;
}

void validate(const pyfastv_turbo_params & p) {
    if (p.r < 0) {
        throw std::invalid_argument("r = " + std::to_string(p.r) + " is out of range; r >= 1");
    }
    if (!(p.share >= 0.0f && p.share < 1.0f)) {
        throw std::invalid_argument("share = " + number(p.share) + " is out of range; 0 < share < 1");
    }
    if ((p.r > 0) == (p.share > 0.0f)) {
        throw std::invalid_argument("r = " + std::to_string(p.r) + ", share = " + number(p.share) + ": one of them must be 0, the other not");
    }
    if (!(p.alpha >= 0.0f && std::isfinite(p.alpha))) {
        throw std::invalid_argument("alpha = " + number(p.alpha) + " is out of range; alpha >= 0");
    }

    const bool all_default = p.first_layer == -1 && p.last_layer == -1;

    if (!all_default && (p.first_layer < 0 || p.last_layer < p.first_layer)) {
        throw std::invalid_argument("layers = " + std::to_string(p.first_layer) + "-" + std::to_string(p.last_layer) +
                " is out of range; 0 <= first <= last");
    }
    if (!all_default && p.once) {
        throw std::invalid_argument("once merges in the last block and excludes layers=" + std::to_string(p.first_layer) + "-" +
                std::to_string(p.last_layer));
    }
}

std::string to_text(const pyfastv_turbo_params & p) {
    auto text = p.r > 0 ? "r=" + std::to_string(p.r) : "share=" + number(p.share);

    text += ",alpha=" + number(p.alpha);
    if (p.first_layer >= 0) {
        text += ",layers=" + std::to_string(p.first_layer) + "-" + std::to_string(p.last_layer);
    }
    return text + (p.once ? ",once" : "") + (p.renumber ? ",renumber" : "");
}

} // namespace pyfastv
