#include "bindings/bindings.h"
#include "bindings/convert.h"

#include "runner/engine.h"
#include "runner/errors.h"
#include "runner/forks.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <exception>
#include <filesystem>
#include <memory>
#include <utility>

namespace py = pybind11;

using namespace py::literals;
using pyfastv::engine;
using pyfastv::error;
using pyfastv::error_kind;

namespace {

// An engine with Python's callbacks: they are called from long computations, which run without the GIL. What they
// raise is kept here, the computation is told to stop, and it is raised again when the computation has come back.
class py_engine {
public:
    // f() without the GIL; ggml's aborts are errors
    template <typename F>
    auto run(F && f) {
        raised = nullptr;
        try {
            const native_scope scope;
            return f();
        } catch (...) {
            if (raised) {
                std::rethrow_exception(std::exchange(raised, nullptr));
            }
            throw;
        }
    }

    py_engine(pyfastv::engine_options options, const py::object & progress) {
        // by reference: only loading, which ends in this constructor, reports to it
        options.progress = [this, &progress](float done) {
            const py::gil_scoped_acquire gil;
            return guarded([&] {
                if (!progress.is_none()) {
                    progress(done);
                }
                check_signals();
            });
        };
        options.interrupt = [this] {
            const py::gil_scoped_acquire gil;
            return !guarded([&] { check_signals(); });
        };

        run([&] { impl = std::make_unique<engine>(options); });
    }

    ~py_engine() {
        if (made.inherited()) {
            (void) impl.release();
        }
    }

    engine & get() {
        refuse_inherited(made, "runner");
        if (!impl) {
            throw error(error_kind::closed, "the runner is closed");
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
    static void check_signals() {
        if (PyErr_CheckSignals() != 0) {
            throw py::error_already_set();
        }
    }

    template <typename F>
    bool guarded(F && f) {
        try {
            f();
            return true;
        } catch (...) {
            raised = std::current_exception();
            return false;
        }
    }

    std::unique_ptr<engine> impl;
    pyfastv::inheritable    made;
    std::exception_ptr      raised;
};

template <typename T>
py::array_t<T> to_array(const std::vector<T> & values) {
    return py::array_t<T>(values.size(), values.data());
}

std::unique_ptr<py_engine> make_engine(
        const std::filesystem::path & model_path, const std::optional<std::filesystem::path> & mmproj_path, int64_t n_ctx,
        int64_t n_batch, int64_t n_ubatch, int64_t n_threads, int64_t n_gpu_layers, std::string flash_attn, std::string type_k,
        std::string type_v, int64_t encoder_cache_bytes, bool verbose, const py::object & progress) {
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

    return std::make_unique<py_engine>(std::move(options), progress);
}

void prefill(py_engine & self, const std::string & prompt, const std::vector<rgb_array> & arrays, const std::vector<std::string> & ids,
        const py::object & progress, bool add_bos, int64_t reserve, const std::vector<int32_t> & frames) {
    auto & impl = self.get();

    const auto images = to_images(arrays, ids, frames);

    engine::progress_fn report;
    if (!progress.is_none()) {
        report = [&](int64_t done, int64_t all) {
            const py::gil_scoped_acquire gil;
            progress(done, all);
        };
    }

    self.run([&] { impl.prefill(prompt, images, add_bos, reserve, report); });
}

void start(py_engine & self, int64_t max_tokens, float temperature, int64_t top_k, float top_p, float min_p, float typical_p,
        float repeat_penalty, int64_t repeat_last_n, float frequency_penalty, float presence_penalty, int64_t seed,
        std::optional<std::string> grammar) {
    auto & impl = self.get();

    const pyfastv::sampling_options options = {
        max_tokens, temperature, top_k, top_p, min_p, typical_p, repeat_penalty, repeat_last_n,
        frequency_penalty, presence_penalty, seed, std::move(grammar),
    };

    self.run([&] { impl.start(options); });
}

py::object next(py_engine & self) {
    auto & impl = self.get();

    const auto token = self.run([&] { return impl.next(); });
    if (!token) {
        return py::none();
    }
    return py::make_tuple(token->first, py::bytes(token->second));
}

// [slice] F32 [n, d]
py::list embed(py_engine & self, const rgb_array & array, const std::string & id) {
    auto & impl = self.get();

    const auto images = to_images({ array }, { id }, {});

    py::list res;
    for (const auto & slice : self.run([&] { return impl.embed(images[0]); })) {
        py::array_t<float> values({ (py::ssize_t) slice.values.size()/impl.n_embd_inp(), (py::ssize_t) impl.n_embd_inp() });
        std::copy(slice.values.begin(), slice.values.end(), values.mutable_data());
        res.append(values);
    }
    return res;
}

// [picture][slice] (nx, ny)
py::list pixels(py_engine & self, const rgb_array & picture) {
    auto & impl = self.get();

    const auto images = to_images({ picture }, { "" }, {});

    py::list res;
    for (const auto & slice : self.run([&] { return impl.pixels(images[0]); })) {
        res.append(py::array_t<uint8_t>({ slice.height, slice.width, 3 }, slice.rgb.data()));
    }
    return res;
}

py::array_t<float> logits(py_engine & self) {
    auto & impl = self.get();

    const float * data = self.run([&] { return impl.logits(); });
    return py::array_t<float>(impl.n_vocab(), data);
}

} // namespace

void bind_engine(py::module_ & m) {
    py::class_<py_engine>(m, "Engine")
        .def(py::init(&make_engine), py::kw_only(), "model_path"_a, "mmproj_path"_a, "n_ctx"_a, "n_batch"_a, "n_ubatch"_a,
             "n_threads"_a, "n_gpu_layers"_a, "flash_attn"_a, "type_k"_a, "type_v"_a, "encoder_cache_bytes"_a, "verbose"_a, "progress"_a)
        .def("close", &py_engine::close)
        .def_property_readonly("closed", &py_engine::closed)
        .def_property_readonly("media_marker",  guarded<py_engine>(&engine::marker))
        .def_property_readonly("n_ctx",         guarded<py_engine>(&engine::n_ctx))
        .def_property_readonly("n_layer",       guarded<py_engine>(&engine::n_layer))
        .def_property_readonly("chat_template", guarded<py_engine>(&engine::chat_template))
        .def_property_readonly("bos_token",     guarded<py_engine>(&engine::bos_token))
        .def_property_readonly("eos_token",     guarded<py_engine>(&engine::eos_token))
        .def_property_readonly("description",   guarded<py_engine>(&engine::description))
        .def_property_readonly("finish_reason", guarded<py_engine>(&engine::finish_reason))
        .def("set_fastv",   [](py_engine & self, const std::string & spec) { auto & e = self.get(); self.run([&] { e.set_fastv(spec); }); }, "spec"_a)
        .def("clear_fastv", [](py_engine & self) { auto & e = self.get(); self.run([&] { e.clear_fastv(); }); })
        .def("set_turbo",   [](py_engine & self, const std::string & spec) { auto & e = self.get(); self.run([&] { e.set_turbo(spec); }); }, "spec"_a)
        .def("clear_turbo", [](py_engine & self) { auto & e = self.get(); self.run([&] { e.clear_turbo(); }); })
        .def("set_reducer",   [](py_engine & self, const std::string & spec) { auto & e = self.get(); self.run([&] { e.set_reducer(spec); }); }, "spec"_a)
        .def("clear_reducer", [](py_engine & self) { self.get().clear_reducer(); })
        .def("prefill", &prefill, "prompt"_a, "images"_a, "image_ids"_a, "progress"_a, "add_bos"_a, "reserve"_a,
             "frames"_a = std::vector<int32_t>())
        .def("embed",   &embed, "image"_a, "image_id"_a)
        .def("places",  [](py_engine & self) { return to_array(self.get().places()); })
        .def("logits",  &logits)
        .def("feed",    [](py_engine & self, int32_t token) { auto & e = self.get(); self.run([&] { e.feed(token); }); }, "token"_a)
        .def("start",   &start, py::kw_only(), "max_tokens"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "typical_p"_a,
             "repeat_penalty"_a, "repeat_last_n"_a, "frequency_penalty"_a, "presence_penalty"_a, "seed"_a, "grammar"_a)
        .def("next",    &next)
        .def("kept",    [](py_engine & self, int32_t cut) { return to_array(self.get().kept(cut)); }, "cut"_a)
        .def("scores",  [](py_engine & self, int32_t cut) { return to_array(self.get().scores(cut)); }, "cut"_a)
        .def("grids",   [](py_engine & self) { return to_grids(self.get().grids()); })
        .def("pixels",  &pixels, "picture"_a)
        .def("reset",   [](py_engine & self) { auto & e = self.get(); self.run([&] { e.reset(); }); })
        .def("report",  [](py_engine & self) { return to_dict(self.get().report()); });
}
