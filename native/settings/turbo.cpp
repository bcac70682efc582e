#include "settings/turbo.h"

#include "settings/text.h"

#include <cmath>
#include <limits>
#include <set>
#include <stdexcept>

namespace pyfastv {

static void parse_layers(const std::string & text, pyfastv_turbo_params & params) {
    constexpr const char * expected = "the first and the last block, as 2-20";
    const auto dash = text.find('-');

    if (dash == std::string::npos || text.find_first_not_of("0123456789-") != std::string::npos) {
        throw not_understood("layers", text, expected);
    }
    const auto block = [&](const std::string & digits) { return parse_whole("layers", digits, 0, std::numeric_limits<int32_t>::max(), expected); };
    params.first_layer = block(text.substr(0, dash));
    params.last_layer  = block(text.substr(dash + 1));
}

// a flag, or "restore=off"
static int32_t parse_restore(const setting_field & field) {
    if (field.value && !is_off(*field.value)) {
        throw not_understood("restore", *field.value, "restore, or restore=off");
    }
    return field.value ? 0 : 1;
}

pyfastv_turbo_params default_turbo() {
    pyfastv_turbo_params res = {};
    res.size        = sizeof(res);
    res.share       = 0.5f;
    res.alpha       = 0.05f;
    res.first_layer = -1;
    res.last_layer  = -1;
    res.restore     = -1;
    return res;
}

pyfastv_turbo_params parse_turbo(const std::string & text) {
    auto res = default_turbo();

    std::set<std::string> seen;
    for (const auto & field : fields_of(text)) {
        seen.insert(field.key);
        if (field.is_flag("once")) {
            res.once = true;
        } else if (field.is_flag("renumber")) {
            res.renumber = true;
        } else if (field.key == "restore") {
            res.restore = parse_restore(field);
        } else if (field.is("share")) {
            res.share = (float) parse_real(field.key, *field.value);
        } else if (field.is("r")) {
            res.r = parse_whole(field.key, *field.value, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max(), "a number of tokens, as 16");
        } else if (field.is("alpha")) {
            res.alpha = (float) parse_real(field.key, *field.value);
        } else if (field.is("layers")) {
            parse_layers(*field.value, res);
        } else {
            throw std::invalid_argument("\"" + field.text + "\" is none of share=, r=, alpha=, layers=, once, renumber, restore");
        }
    }
    if (seen.count("r") && seen.count("share")) {
        throw std::invalid_argument("\"" + text + "\": share= and r= exclude each other");
    }
    if (seen.count("r")) {
        if (res.r < 1) {
            throw std::invalid_argument("r = " + std::to_string(res.r) + " is out of range; r >= 1");
        }
        res.share = 0;
    } else if (res.share == 0.0f) {
        throw std::invalid_argument("share = 0 is out of range; 0 < share < 1");
    }
    validate(res);
    return res;
}

void validate(const pyfastv_turbo_params & p) {
    if (p.r < 0) {
        throw std::invalid_argument("r = " + std::to_string(p.r) + " is out of range; r >= 1");
    }
    if (!(p.share >= 0.0f && p.share < 1.0f)) {
        throw std::invalid_argument("share = " + to_text(p.share) + " is out of range; 0 < share < 1");
    }
    if ((p.r > 0) == (p.share > 0.0f)) {
        throw std::invalid_argument("r = " + std::to_string(p.r) + ", share = " + to_text(p.share) + ": one of them must be 0, the other not");
    }
    if (!(p.alpha >= 0.0f && std::isfinite(p.alpha))) {
        throw std::invalid_argument("alpha = " + to_text(p.alpha) + " is out of range; alpha >= 0");
    }

    if (p.restore < -1 || p.restore > 1) {
        throw std::invalid_argument("restore = " + std::to_string(p.restore) + " is out of range; 1: yes, 0: no, -1: where the encoder needs it");
    }
    if (p.restore == 1 && p.renumber) {
        throw std::invalid_argument("restore gives every patch its token back, and excludes renumber");
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
    auto text = p.r > 0 ? "r=" + std::to_string(p.r) : "share=" + to_text(p.share);

    text += ",alpha=" + to_text(p.alpha);
    if (p.first_layer >= 0) {
        text += ",layers=" + std::to_string(p.first_layer) + "-" + std::to_string(p.last_layer);
    }
    return text + (p.once ? ",once" : "") + (p.renumber ? ",renumber" : "") +
            (p.restore == 1 ? ",restore" : p.restore == 0 ? ",restore=off" : "");
}

} // namespace pyfastv
