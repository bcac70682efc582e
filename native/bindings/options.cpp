#include "bindings/options.h"

#include "bindings/bindings.h"

#include "runner/errors.h"
#include "runner/options.h"

#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <filesystem>
#include <optional>
#include <string>

namespace py = pybind11;

using pyfastv::engine_options;
using pyfastv::sampling_options;

namespace {

// The options whose names are given, the others as by default. Raises TypeError.
template <typename Options>
Options of_keywords(const py::kwargs & given) {
    py::object res = py::cast(Options());
    for (const auto & item : given) {
        const py::handle name = item.first;
        if (!py::hasattr(res, name)) {
            throw py::type_error("there is no option " + std::string(py::repr(name)));
        }
        py::setattr(res, name, item.second);
    }
    return py::cast<Options>(res);
}

} // namespace

engine_options   to_engine_options  (const py::kwargs & given) { return of_keywords<engine_options>(given); }
sampling_options to_sampling_options(const py::kwargs & given) { return of_keywords<sampling_options>(given); }

void bind_options(py::module_ & m) {
    using path      = std::filesystem::path;
    using some_path = std::optional<path>;

    m.attr("DEFAULT_N_CTX") = pyfastv::default_n_ctx;

    py::class_<engine_options>(m, "EngineOptions")
        .def(py::init(&to_engine_options))
        // files are named by bytes, not by text: what os.fsencode() takes
        .def_property("model_path", [](const engine_options & o) { return path(o.model_path); },
                [](engine_options & o, const path & value) { o.model_path = value.string(); })
        .def_property("mmproj_path", [](const engine_options & o) { return o.mmproj_path ? some_path(*o.mmproj_path) : std::nullopt; },
                [](engine_options & o, const some_path & value) { o.mmproj_path = value ? std::optional(value->string()) : std::nullopt; })
        .def_readwrite("n_slots",      &engine_options::n_slots)
        .def_readwrite("n_ctx",        &engine_options::n_ctx)
        .def_readwrite("n_batch",      &engine_options::n_batch)
        .def_readwrite("n_ubatch",     &engine_options::n_ubatch)
        .def_readwrite("n_threads",    &engine_options::n_threads)
        .def_readwrite("n_threads_batch", &engine_options::n_threads_batch)
        .def_readwrite("n_gpu_layers", &engine_options::n_gpu_layers)
        .def_readwrite("flash_attn",   &engine_options::flash_attn)
        .def_readwrite("type_k",       &engine_options::type_k)
        .def_readwrite("type_v",       &engine_options::type_v)
        .def_readwrite("encoder_cache_bytes", &engine_options::encoder_cache_bytes)
        .def_property("encoder_cache_dir", [](const engine_options & o) { return o.encoder_cache_dir ? some_path(*o.encoder_cache_dir) : std::nullopt; },
                [](engine_options & o, const some_path & value) { o.encoder_cache_dir = value ? std::optional(value->string()) : std::nullopt; })
        .def_readwrite("encoder_cache_made_by", &engine_options::encoder_cache_made_by)
        .def_readwrite("encoder_cache_disk_bytes", &engine_options::encoder_cache_disk_bytes)
        .def_readwrite("checkpoint_bytes", &engine_options::checkpoint_bytes)
        .def_readwrite("verbose",      &engine_options::verbose);

    py::class_<sampling_options>(m, "SamplingOptions")
        .def(py::init(&to_sampling_options))
        .def_readwrite("max_tokens",        &sampling_options::max_tokens)
        .def_readwrite("temperature",       &sampling_options::temperature)
        .def_readwrite("top_k",             &sampling_options::top_k)
        .def_readwrite("top_p",             &sampling_options::top_p)
        .def_readwrite("min_p",             &sampling_options::min_p)
        .def_readwrite("typical_p",         &sampling_options::typical_p)
        .def_readwrite("repeat_penalty",    &sampling_options::repeat_penalty)
        .def_readwrite("repeat_last_n",     &sampling_options::repeat_last_n)
        .def_readwrite("frequency_penalty", &sampling_options::frequency_penalty)
        .def_readwrite("presence_penalty",  &sampling_options::presence_penalty)
        .def_readwrite("seed",              &sampling_options::seed)
        .def_readwrite("grammar",           &sampling_options::grammar)
        .def_readwrite("grammar_triggers",  &sampling_options::grammar_triggers)
        .def_readwrite("preserved",         &sampling_options::preserved)
        .def_readwrite("logit_bias",        &sampling_options::logit_bias)
        .def_readwrite("ignore_eos",        &sampling_options::ignore_eos)
        .def_readwrite("skip_special_tokens", &sampling_options::skip_special_tokens);

    py::class_<pyfastv::run_report> report(m, "RunReport");
    report.def(py::init<>());
#define X(type, name) report.def_readonly(#name, &pyfastv::run_report::name);
    PYFASTV_RUN_REPORT(X)
#undef X
}
