#pragma once

#include "settings/reducer.h"
#include "settings/schedule.h"
#include "settings/skip.h"
#include "settings/turbo.h"

#include <optional>
#include <string>

// What is done to pictures, as one value. All throw std::invalid_argument that names what is wrong; of Turbo, reducers and
// what is left out it begins with "turbo: ", "reduce: " or "skip: ".
namespace pyfastv {

struct setting {
    std::optional<schedule_setting>     fastv;
    std::optional<pyfastv_turbo_params> turbo;
    std::optional<reducer>              reduce;
    std::optional<pyfastv_skip_params>  skip;
};

// "off", a schedule, "turbo:share=0.5" ("turbo" alone: half of the tokens), "reduce:pool,window=2", "skip:tau=8" ("skip" alone:
// tau=0), or several of these joined by "+". What is left out is off.
setting parse_setting(const std::string & text);

// each alone; nothing: "off", in any case
std::optional<schedule_setting>     schedule_or_off(const std::string & text);
std::optional<pyfastv_turbo_params> turbo_or_off   (const std::string & text);
std::optional<reducer>              reducer_or_off (const std::string & text);
std::optional<pyfastv_skip_params>  skip_or_off    (const std::string & text);

} // namespace pyfastv
