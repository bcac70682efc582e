#include "bindings/bindings.h"

#include "bindings/convert.h"
#include "runner/errors.h"
#include "runner/forks.h"
#include "runner/slots.h"

#include <pybind11/stl/filesystem.h>

#include <exception>
#include <filesystem>
#include <memory>
#include <utility>

namespace py = pybind11;

using namespace py::literals;
using pyfastv::error;
using pyfastv::error_kind;
using pyfastv::slots;

namespace {

class py_slots {
public:
    py_slots(pyfastv::engine_options options, int64_t n_slots, const py::object & progress) {
        std::exception_ptr raised; // by Python's callback, which is called without the GIL

        if (!progress.is_none()) {
            options.progress = [&](float done) {
                const py::gil_scoped_acquire gil;
                try {
                    progress(done);
                    return true;
                } catch (...) {
                    raised = std::current_exception();
                    return false;
                }
            };
        }
        try {
            const native_scope scope;
            impl = std::make_unique<slots>(options, n_slots);
        } catch (...) {
            if (raised) {
                std::rethrow_exception(raised);
            }
            throw;
        }
    }

    ~py_slots() {
        if (made.inherited()) {
            (void) impl.release();
        }
    }

    slots & get() {
        refuse_inherited(made, "pool");
        if (!impl) {
            throw error(error_kind::closed, "the slots are closed");
        }
        return *impl;
    }

    void close() {
        if (made.inherited()) {
            (void) impl.release();
            return;
        }
        const py::gil_scoped_release release;
        impl.reset();
    }

    bool closed() const { return !impl || made.inherited(); }

private:
    std::unique_ptr<slots> impl;
    pyfastv::inheritable   made;
};

std::unique_ptr<py_slots> make_slots(
        const std::filesystem::path & model_path, const std::optional<std::filesystem::path> & mmproj_path, int64_t n_slots,
        int64_t n_ctx, int64_t n_batch, int64_t n_ubatch, int64_t n_threads, int64_t n_gpu_layers, std::string flash_attn,
        std::string type_k, std::string type_v, int64_t encoder_cache_bytes, bool verbose, const py::object & progress) {
    pyfastv::engine_options options;
    options.model_path   = model_path.string();
    options.mmproj_path  = to_string(mmproj_path);
    options.n_ctx        = n_ctx;
    options.n_batch      = n_batch;
    options.n_ubatch     = n_ubatch;
    options.n_threads    = n_threads;
    options.n_gpu_layers = n_gpu_layers;
    options.flash_attn   = std::move(flash_attn);
    options.type_k       = std::move(type_k);
    options.type_v       = std::move(type_v);
    options.encoder_cache_bytes = encoder_cache_bytes;
    options.verbose      = verbose;

    return std::make_unique<py_slots>(std::move(options), n_slots, progress);
}

// what prepare() gives to start()
struct py_request {
    pyfastv::slot_request impl;
};

std::unique_ptr<py_request> prepare(py_slots & self, const std::string & prompt, const std::vector<rgb_array> & arrays, const std::vector<std::string> & ids,
        bool add_bos, int64_t max_tokens, float temperature, int64_t top_k, float top_p, float min_p, float typical_p,
        float repeat_penalty, int64_t repeat_last_n, float frequency_penalty, float presence_penalty, int64_t seed,
        std::optional<std::string> grammar, int64_t n_probs, std::string turbo, std::string reducer) {
    auto & impl = self.get();

    const auto images = to_images(arrays, ids);

    const pyfastv::sampling_options sampling = {
        max_tokens, temperature, top_k, top_p, min_p, typical_p, repeat_penalty, repeat_last_n,
        frequency_penalty, presence_penalty, seed, std::move(grammar),
    };

    const native_scope scope;
    return std::make_unique<py_request>(py_request { impl.prepare(prompt, images, add_bos, { std::move(turbo), std::move(reducer) }, sampling, n_probs) });
}

int64_t start(py_slots & self, py_request & request) {
    auto & impl = self.get();

    const native_scope scope;
    return impl.start(std::exchange(request.impl, {}));
}

py::dict event_dict(const pyfastv::slot_event & event, bool probs) {
    py::dict res("id"_a = event.id, "token"_a = py::none(), "bytes"_a = py::bytes(event.bytes), "logprob"_a = py::none(), "top"_a = py::list(),
            "finish"_a = event.finish, "error"_a = py::none(), "report"_a = py::none());

    if (event.token != LLAMA_TOKEN_NULL) {
        res["token"] = event.token;
    }
    if (probs) {
        py::list top;
        for (const auto & prob : event.top) {
            top.append(py::make_tuple(prob.token, py::bytes(prob.bytes), prob.logprob));
        }
        res["logprob"] = event.logprob;
        res["top"]     = top;
    }
    if (event.failure) {
        res["error"] = to_exception(*event.failure);
    }
    if (event.ended()) {
        res["report"] = to_dict(event.report);
        py::list kept;
        for (const auto & of_cut : event.kept) {
            kept.append(py::array_t<int32_t>(of_cut.size(), of_cut.data()));
        }
        res["kept"]  = kept;
        res["grids"] = to_grids(event.grids);
        py::list pictures;
        for (const auto & slices : event.pictures) {
            py::list of_picture;
            for (const auto & slice : slices) {
                py::list patches;
                for (const auto & grid : slice.patches) {
                    patches.append(py::make_tuple(grid.nx, grid.ny));
                }
                of_picture.append(py::make_tuple(patches, py::array_t<int32_t>(slice.places.size(), slice.places.data())));
            }
            pictures.append(of_picture);
        }
        res["pictures"] = pictures;
    }
    return res;
}

py::list step(py_slots & self) {
    auto & impl = self.get();

    std::vector<pyfastv::slot_event> events;
    {
        const native_scope scope;
        events = impl.step();
    }
    py::list res;
    for (const auto & event : events) {
        res.append(event_dict(event, !event.top.empty()));
    }
    return res;
}

template <typename F>
void run(py_slots & self, F && f) {
    auto & impl = self.get();

    const native_scope scope;
    f(impl);
}

} // namespace

void bind_slots(py::module_ & m) {
    py::class_<py_request>(m, "SlotRequest");

    py::class_<py_slots>(m, "Slots")
        .def(py::init(&make_slots), py::kw_only(), "model_path"_a, "mmproj_path"_a, "n_slots"_a, "n_ctx"_a, "n_batch"_a, "n_ubatch"_a,
             "n_threads"_a, "n_gpu_layers"_a, "flash_attn"_a, "type_k"_a, "type_v"_a, "encoder_cache_bytes"_a, "verbose"_a, "progress"_a)
        .def("close", &py_slots::close)
        .def_property_readonly("closed", &py_slots::closed)
        .def_property_readonly("media_marker",  guarded<py_slots>(&slots::marker))
        .def_property_readonly("n_slots",       guarded<py_slots>(&slots::n_slots))
        .def_property_readonly("n_idle",        guarded<py_slots>(&slots::n_idle))
        .def_property_readonly("idle",          guarded<py_slots>(&slots::idle))
        .def_property_readonly("n_ctx",         guarded<py_slots>(&slots::n_ctx))
        .def_property_readonly("n_layer",       guarded<py_slots>(&slots::n_layer))
        .def_property_readonly("chat_template", guarded<py_slots>(&slots::chat_template))
        .def_property_readonly("bos_token",     guarded<py_slots>(&slots::bos_token))
        .def_property_readonly("eos_token",     guarded<py_slots>(&slots::eos_token))
        .def_property_readonly("description",   guarded<py_slots>(&slots::description))
        .def("set_fastv",   [](py_slots & self, const std::string & spec) { run(self, [&](slots & s) { s.set_fastv(spec); }); }, "spec"_a)
        .def("clear_fastv", [](py_slots & self) { run(self, [](slots & s) { s.clear_fastv(); }); })
        .def("check",       [](py_slots & self, const std::string & turbo, const std::string & reducer) {
            run(self, [&](slots & s) { s.check({ turbo, reducer }); });
        }, "turbo"_a, "reducer"_a)
        .def("prepare",     &prepare, "prompt"_a, "images"_a, "image_ids"_a, "add_bos"_a, py::kw_only(), "max_tokens"_a, "temperature"_a,
             "top_k"_a, "top_p"_a, "min_p"_a, "typical_p"_a, "repeat_penalty"_a, "repeat_last_n"_a, "frequency_penalty"_a,
             "presence_penalty"_a, "seed"_a, "grammar"_a, "n_probs"_a, "turbo"_a = "", "reducer"_a = "")
        .def("start",       &start, "request"_a)
        .def("step",        &step)
        .def("cancel",      [](py_slots & self, int64_t id) { self.get().cancel(id); }, "id"_a)
        .def("reset",       [](py_slots & self) { run(self, [](slots & s) { s.reset(); }); });
}
