#include "schedule/names.h"

#include <locale>
#include <sstream>
#include <stdexcept>

namespace pyfastv {

pyfastv_score parse_score(const std::string & name) {
    if (name == "last")          { return PYFASTV_SCORE_LAST; }
    if (name == "question-mean") { return PYFASTV_SCORE_QUESTION_MEAN; }
    if (name == "question-max")  { return PYFASTV_SCORE_QUESTION_MAX; }

    throw std::invalid_argument("score = \"" + name + "\"; one of: last, question-mean, question-max");
}

void parse_pick(const std::string & name, pyfastv_params & params) {
    const std::string window = "window";

    if (name == "top-k") {
        params.pick = PYFASTV_PICK_TOP_K;
        return;
    }
    if (name == "uniform") {
        params.pick = PYFASTV_PICK_UNIFORM;
        return;
    }
    if (name.rfind(window, 0) == 0) {
        const auto digits = name.substr(window.size());
        if (!digits.empty() && digits.size() <= 4 && digits.find_first_not_of("0123456789") == std::string::npos && std::stoi(digits) > 0) {
            params.pick   = PYFASTV_PICK_WINDOW;
            params.window = std::stoi(digits);
            return;
        }
    }

    throw std::invalid_argument("pick = \"" + name + "\"; one of: top-k, uniform, window4 (or another side of 1 to 9999 patches)");
}

template <typename T>
static T parse_number(const std::string & key, const std::string & text) {
    std::istringstream stream(text);
    stream.imbue(std::locale::classic());

    T value;
    if (!(stream >> value) || !stream.eof()) {
        throw std::invalid_argument(key + " = \"" + text + "\" is not a number");
    }
    return value;
}

pyfastv_params parse_params(const std::string & text) {
    auto params = pyfastv_default_params();

    std::istringstream stream(text);
    for (std::string item; std::getline(stream, item, ','); ) {
        const auto equals = item.find('=');
        const auto key    = item.substr(0, equals);
        const auto value  = equals == std::string::npos ? "" : item.substr(equals + 1);

        if (key == "k") {
            params.k = parse_number<int32_t>(key, value);
        } else if (key == "drop") {
            params.drop = parse_number<float>(key, value);
        } else if (key == "score") {
            params.score = parse_score(value);
        } else if (key == "pick") {
            parse_pick(value, params);
        } else {
            throw std::invalid_argument("\"" + item + "\" is none of k=..., drop=..., score=..., pick=...");
        }
    }

    return params;
}

} // namespace pyfastv
