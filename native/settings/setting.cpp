#include "settings/setting.h"

#include "settings/text.h"

#include <set>
#include <stdexcept>

namespace pyfastv {
namespace {

constexpr const char * half = "share=0.5", * the_same = "tau=0";

// parse(text), unless it is "off"; what that throws says whose text it is
template <typename F>
auto or_off(const std::string & text, const std::string & whose, F && parse) -> std::optional<decltype(parse(text))> {
    if (is_off(text)) {
        return {};
    }
    try {
        return parse(text);
    } catch (const std::invalid_argument & err) {
        throw std::invalid_argument(whose + err.what());
    }
}

} // namespace

std::optional<schedule_setting>     schedule_or_off(const std::string & text) { return or_off(text, "",         parse_schedule); }
std::optional<pyfastv_turbo_params> turbo_or_off   (const std::string & text) { return or_off(text, "turbo: ",  parse_turbo); }
std::optional<reducer>              reducer_or_off (const std::string & text) { return or_off(text, "reduce: ", parse_reducer); }
std::optional<pyfastv_skip_params>  skip_or_off    (const std::string & text) { return or_off(text, "skip: ",   parse_skip); }

setting parse_setting(const std::string & text) {
    setting               res;
    std::set<std::string> seen;
    for (const auto & part : split(text, '+')) {
        const auto        colon  = part.find(':');
        const std::string kind   = lower(trim(part.substr(0, colon)));
        const std::string rest   = colon == std::string::npos ? "" : trim(part.substr(colon + 1));
        const std::string called = kind == "turbo" || kind == "reduce" || kind == "skip" ? kind : "a schedule";

        if (part.empty()) {
            throw std::invalid_argument("\"" + text + "\": there is nothing on one side of a \"+\"");
        }
        if (!seen.insert(called).second) {
            throw std::invalid_argument("\"" + text + "\": " + called + " is given twice");
        }
        if (kind == "reduce" && rest.empty()) {
            throw std::invalid_argument("\"" + text + "\": reduce: needs the reducer's name behind the colon");
        }
        if (kind == "turbo") {
            res.turbo = turbo_or_off(rest.empty() ? half : rest);
        } else if (kind == "skip") {
            res.skip = skip_or_off(rest.empty() ? the_same : rest);
        } else if (kind == "reduce") {
            res.reduce = reducer_or_off(rest);
        } else {
            res.fastv = schedule_or_off(part);
        }
    }
    return res;
}

} // namespace pyfastv
