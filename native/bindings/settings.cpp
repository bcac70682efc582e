#include "bindings/bindings.h"

#include "runner/errors.h"
#include "settings/reducer.h"
#include "settings/rules.h"
#include "settings/schedule.h"
#include "settings/setting.h"
#include "settings/skip.h"
#include "settings/text.h"
#include "settings/turbo.h"

#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

namespace py = pybind11;
using namespace pybind11::literals;

// The language of settings: text to values, which Python's classes hold. All raise OptionError; "off" is None.

template <typename T, typename F>
static py::object or_none(const std::optional<T> & value, F && to_python) {
    return value ? to_python(*value) : py::object(py::none());
}

static py::dict to_dict(const pyfastv::cut_setting & cut) {
    return py::dict(
        "layer"_a = cut.percent ? py::object(py::str(pyfastv::layer_text(cut))) : py::int_(cut.layer), "drop"_a = cut.drop,
        "score"_a = pyfastv::score_text(cut), "pick"_a = pyfastv::pick_text(cut), "weigh"_a = cut.weigh, "merge"_a = cut.merge);
}

static py::object of_schedule(const pyfastv::schedule_setting & schedule) {
    py::list cuts;
    for (const auto & cut : schedule.cuts) {
        cuts.append(to_dict(cut));
    }
    const py::object cells = schedule.n_cells < 0 ? py::object(py::str("auto")) : schedule.n_cells == 0 ? py::none() : py::object(py::int_(schedule.n_cells));
    const py::object preset = schedule.preset.empty() ? py::object(py::none()) : py::str(schedule.preset);
    return py::dict("preset"_a = preset, "cuts"_a = cuts, "recall"_a = schedule.recall, "cells"_a = cells);
}

static py::dict check_cut(const std::string & layer, double drop, const std::optional<std::string> & score, const std::optional<std::string> & pick,
        std::optional<bool> weigh, std::optional<bool> merge) {
    return pyfastv::option_checked([&] { return to_dict(pyfastv::parse_cut(layer, drop, { score, pick, weigh, merge })); });
}

static std::string check_schedule(const std::string & spec, int32_t n_layer) {
    return pyfastv::option_checked([&] {
        const auto params = pyfastv::to_params(pyfastv::parse_schedule(spec), n_layer);
        pyfastv::validate(params, n_layer);
        return pyfastv::to_text(params);
    });
}

// the double that is written like the float
static double as_written(float value) { return *pyfastv::real_in(pyfastv::to_text(value)); }

static py::object of_turbo(const pyfastv_turbo_params & turbo) {
    const py::object restore = turbo.restore < 0 ? py::object(py::none()) : py::bool_(turbo.restore == 1);
    const py::object layers = turbo.first_layer < 0 ? py::object(py::none()) : py::make_tuple(turbo.first_layer, turbo.last_layer);
    return py::dict(
        "share"_a = turbo.r > 0 ? py::object(py::none()) : py::float_(as_written(turbo.share)),
        "r"_a = turbo.r > 0 ? py::object(py::int_(turbo.r)) : py::none(), "alpha"_a = as_written(turbo.alpha), "layers"_a = layers,
        "once"_a = turbo.once, "renumber"_a = turbo.renumber, "restore"_a = restore);
}

static py::object of_skip(const pyfastv_skip_params & skip) { return py::dict("tau"_a = as_written(skip.tau)); }

// the name, and what was not left out, or has a value of its own
static py::object of_reducer(const pyfastv::reducer & how) {
    py::dict values("renumber"_a = how.renumber);
    for (const auto & key : pyfastv::keys_of(how.method)) {
        if (key == "keep" && how.keep > 0) {
            values["keep"] = how.keep >= 1 ? py::object(py::int_((int64_t) how.keep)) : py::float_(how.keep);
        } else if (key == "drop") {
            values["drop"] = how.drop;
        } else if (key == "window" && how.keep == 0) {
            values["window"] = how.window;
        } else if (key == "frames") {
            values["frames"] = how.frames;
        } else if (key == "scale") {
            values["scale"] = how.scale;
        }
    }
    return py::make_tuple(pyfastv::name_of(how.method), values);
}

template <typename T, size_t N>
static py::tuple texts_of(const T (&rules)[N], const char * pyfastv::rule::* text) {
    py::tuple res(N);
    for (size_t i = 0; i < N; ++i) {
        res[i] = rules[i].*text;
    }
    return res;
}

void bind_settings(py::module_ & m) {
    m.attr("SCORES")        = texts_of(pyfastv::score_rules, &pyfastv::rule::name);
    m.attr("SCORE_CHOICES") = texts_of(pyfastv::score_rules, &pyfastv::rule::shown);
    m.attr("PICKS")         = texts_of(pyfastv::pick_rules,  &pyfastv::rule::name);
    m.attr("PICK_CHOICES")  = texts_of(pyfastv::pick_rules,  &pyfastv::rule::shown);
    m.attr("PRESETS")       = py::tuple(py::cast(pyfastv::preset_names()));
    m.attr("RECALL")        = pyfastv::schedule_setting().recall;
    m.attr("MAX_CUTS")      = PYFASTV_MAX_CUTS;

    m.def("parse_setting", [](const std::string & text) {
        const auto setting = pyfastv::option_checked([&] { return pyfastv::parse_setting(text); });
        return py::dict(
            "fastv"_a = or_none(setting.fastv, of_schedule), "turbo"_a = or_none(setting.turbo, of_turbo),
            "reduce"_a = or_none(setting.reduce, of_reducer), "skip"_a = or_none(setting.skip, of_skip));
    }, "text"_a);
    m.def("parse_schedule", [](const std::string & text) {
        return or_none(pyfastv::option_checked([&] { return pyfastv::schedule_or_off(text); }), of_schedule);
    }, "text"_a);
    m.def("check_cut",      &check_cut, "layer"_a, "drop"_a, "score"_a, "pick"_a, "weigh"_a, "merge"_a);
    m.def("check_schedule", &check_schedule, "spec"_a, "n_layer"_a);
    m.def("parse_turbo", [](const std::string & text) {
        return or_none(pyfastv::option_checked([&] { return pyfastv::turbo_or_off(text); }), of_turbo);
    }, "text"_a);
    m.def("parse_skip", [](const std::string & text) {
        return or_none(pyfastv::option_checked([&] { return pyfastv::skip_or_off(text); }), of_skip);
    }, "text"_a);
    m.def("parse_reducer", [](const std::string & text) {
        return or_none(pyfastv::option_checked([&] { return pyfastv::reducer_or_off(text); }), of_reducer);
    }, "text"_a);
    m.def("check_reducer",  [](const std::string & spec) {
        return pyfastv::option_checked([&] { return pyfastv::to_text(pyfastv::parse_reducer(spec)); });
    }, "spec"_a);
}
