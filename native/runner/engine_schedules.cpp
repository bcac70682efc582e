// engine: by what visual tokens are chosen

#include "runner/engine.h"

#include "runner/errors.h"
#include "runner/log.h"
#include "runner/status.h"

#include "settings/schedule.h"

#include <string>
#include <utility>
#include <vector>

namespace pyfastv {

request_schedule parse_request_schedule(const std::string & spec, int32_t n_layer) {
    request_schedule res;
    if (spec.empty()) {
        return res;
    }
    res.params.size = sizeof(res.params);
    if (pyfastv_parse(spec.c_str(), n_layer, &res.params) != PYFASTV_OK) {
        throw error(error_kind::option, pyfastv_last_error());
    }
    res.text = to_text(res.params);
    return res;
}

std::vector<std::pair<int32_t, int32_t>> fit_layers(const llama_model * model, const std::string & spec) {
    const auto asked  = parse_request_schedule(spec, llama_model_n_layer(model));
    auto       fitted = asked.params;
    if (!asked.off() && pyfastv_fit_layers(model, &fitted) != PYFASTV_OK) {
        throw error(error_kind::option, pyfastv_last_error());
    }
    std::vector<std::pair<int32_t, int32_t>> res;
    for (int32_t c = 0; c < asked.n_cuts(); ++c) {
        res.emplace_back(asked.params.cuts[c].layer, fitted.cuts[c].layer);
    }
    return res;
}

pyfastv_params request_schedule::in(const pyfastv_params & attached) const {
    if (!off()) {
        return params;
    }
    auto res = default_params();
    res.n_cuts = attached.n_cuts;
    res.recall = 0;
    for (int32_t c = 0; c < res.n_cuts; ++c) {
        res.cuts[c]       = {}; // nothing is compared or weighed
        res.cuts[c].layer = attached.cuts[c].layer;
        res.cuts[c].drop  = 0;
        res.cuts[c].score = pyfastv_find_score("none");
    }
    return res;
}

void engine::set_fastv(const std::string & spec) {
    const auto schedule = parse_request_schedule(spec, n_layer());
    const turn mine(*this);

    attach(schedule);
    by_default = schedule;
}

bool engine::fits(const std::string & spec) const {
    return fits(parse_request_schedule(spec, n_layer()));
}

void engine::fit(const std::string & spec) {
    const auto schedule = parse_request_schedule(spec, n_layer());
    const turn mine(*this);

    make_fit(schedule);
}

bool engine::fits(const request_schedule & schedule) const {
    const std::lock_guard<std::mutex> lock(attaching);

    const auto attached = attached_to(ctx.get());
    if (!attached) {
        return schedule.off();
    }
    const auto params = schedule.in(*attached);

    return pyfastv_fits(ctx.get(), &params);
}

void engine::make_fit(const request_schedule & schedule) {
    if (!fits(schedule)) {
        attach(schedule);
    }
}

void engine::attach(const request_schedule & schedule) {
    check_idle();
    require_memory();
    const log_scope log(options.verbose);

    std::string reason;
    const auto  status = [&] {
        const std::lock_guard<std::mutex> lock(attaching);

        const auto res = pyfastv_attach(ctx.get(), schedule.off() ? nullptr : &schedule.params);
        reason = pyfastv_last_error();
        return res;
    }();
    lost_memory = status != PYFASTV_OK && !llama_get_memory(ctx.get());
    forget();
    if (status != PYFASTV_OK) {
        throw error(kind_of(status), reason);
    }
}

void engine::choose_by(slot & s, const request_schedule & schedule) {
    if (!s.holds_pictures()) {
        if (const auto status = set_schedule(s, schedule); status != PYFASTV_OK) {
            throw error(kind_of(status), pyfastv_last_error());
        }
    }
    s.schedule = schedule;
}

pyfastv_status engine::set_schedule(const slot & s, const request_schedule & schedule) {
    const auto attached = attached_to(ctx.get());
    if (!attached) {
        return PYFASTV_OK;
    }
    const auto params = schedule.in(*attached);

    return pyfastv_set_schedule(ctx.get(), s.seq_id, &params);
}

} // namespace pyfastv
