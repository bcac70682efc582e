// engine: Turbo in the vision encoder

#include "runner/engine.h"

#include "runner/errors.h"
#include "runner/log.h"

#include "pyfastv_turbo.h"

namespace pyfastv {

void engine::set_turbo(const std::string & spec) {
    const log_scope log(options.verbose);

    pyfastv_turbo_params params;
    if (pyfastv_turbo_parse(spec.c_str(), &params) != PYFASTV_OK) {
        throw error(error_kind::option, "turbo: " + std::string(pyfastv_turbo_last_error()));
    }
    if (!vision) {
        throw error(error_kind::option, "turbo merges tokens in the vision encoder, but the model was loaded without an mmproj file");
    }
    const auto status = pyfastv_turbo_attach(vision.get(), &params);
    if (status != PYFASTV_OK) {
        throw error(status == PYFASTV_UNSUPPORTED ? error_kind::unsupported : error_kind::option,
                std::string("turbo: ") + pyfastv_turbo_last_error());
    }
    turbo = spec;
    reset();
}

void engine::clear_turbo() {
    if (vision) {
        pyfastv_turbo_attach(vision.get(), nullptr);
    }
    turbo.clear();
    reset();
}

} // namespace pyfastv
