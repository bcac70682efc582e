#include "settings/skip.h"

#include "settings/text.h"

#include <stdexcept>

namespace pyfastv {

pyfastv_skip_params default_skip() {
    pyfastv_skip_params res = {};
    res.size = sizeof(res);
    return res;
}

pyfastv_skip_params parse_skip(const std::string & text) {
    auto res = default_skip();

    for (const auto & field : fields_of(text)) {
        if (!field.is("tau")) {
            throw std::invalid_argument("\"" + field.text + "\" is not tau=");
        }
        res.tau = (float) parse_real(field.key, *field.value);
    }
    validate(res);
    return res;
}

void validate(const pyfastv_skip_params & p) {
    // written so that NaN fails
    if (!(p.tau >= 0.0f && p.tau <= 255.0f)) {
        throw std::invalid_argument("tau = " + to_text(p.tau) + " is out of range; 0 <= tau <= 255");
    }
}

std::string to_text(const pyfastv_skip_params & p) {
    return "tau=" + to_text(p.tau);
}

} // namespace pyfastv
