#include "bindings/bindings.h"
#include "bindings/convert.h"
#include "bindings/options.h"

#include "runner/errors.h"
#include "runner/forks.h"
#include "runner/engine.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace py = pybind11;

using namespace py::literals;
using pyfastv::error;
using pyfastv::error_kind;
using pyfastv::engine;

namespace {

using request_number = std::optional<int64_t>; // none: of the newest request

// What a callback raised on this thread: the computation is told to stop, and it is raised again when that has come back.
thread_local std::exception_ptr raised;

// f(), which may raise; false: it has
template <typename F>
bool kept(F && f) {
    const py::gil_scoped_acquire gil;
    try {
        f();
        return true;
    } catch (...) {
        raised = std::current_exception();
        return false;
    }
}

void check_signals() {
    if (PyErr_CheckSignals() != 0) {
        throw py::error_already_set();
    }
}

void raise_what_was() {
    if (raised) {
        std::rethrow_exception(std::exchange(raised, nullptr));
    }
}

// f() without the GIL; ggml's aborts are errors
template <typename F>
auto native(F && f) {
    const auto released = [&] {
        const native_scope scope;
        return f();
    };
    raised = nullptr;
    try {
        if constexpr (std::is_void_v<decltype(f())>) {
            released();
            raise_what_was();
        } else {
            auto res = released();
            raise_what_was();
            return res;
        }
    } catch (...) {
        raise_what_was();
        throw;
    }
}

class py_engine {
public:
    py_engine(pyfastv::engine_options options, const py::object & progress) {
        // by reference: only loading, which ends in this constructor, reports to it
        options.progress = [&progress](float done) {
            return kept([&] {
                if (!progress.is_none()) {
                    progress(done);
                }
                check_signals();
            });
        };
        // Python handles signals in its main thread alone; others need not wait for the GIL
        const auto main = py::module_::import("threading").attr("main_thread")().attr("ident").cast<unsigned long>();

        options.interrupt = [main] { return PyThread_get_thread_ident() == main && !kept(check_signals); };

        native([&] { impl = std::make_unique<engine>(options); });
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
    std::unique_ptr<engine> impl;
    pyfastv::inheritable   made;
};

// f(engine) without the GIL
template <typename F>
auto run(py_engine & self, F && f) {
    auto & impl = self.get();
    return native([&] { return f(impl); });
}

// f(engine, number of a request)
template <typename F>
auto run(py_engine & self, const request_number & request, F && f) {
    return run(self, [&](engine & e) { return f(e, request.value_or(e.newest())); });
}

//
// requests that one thread computes for all
//

// what prepare() gives to start()
struct py_request {
    pyfastv::slot_request impl;
};

using byte_array = py::array_t<uint8_t, py::array::c_style | py::array::forcecast>;
using byte_spans = std::vector<std::pair<size_t, size_t>>;

std::vector<pyfastv::span> to_spans(const byte_spans & spans) {
    std::vector<pyfastv::span> res;
    for (const auto & [begin, end] : spans) {
        res.push_back({ begin, end });
    }
    return res;
}

std::unique_ptr<py_request> prepare(py_engine & self, const std::string & prompt, const std::vector<rgb_array> & arrays,
        const std::vector<std::string> & ids, bool add_bos, const std::vector<int32_t> & frames, int64_t n_probs, std::string turbo,
        std::string reducer, const std::optional<std::string> & fastv, const byte_spans & answers, const byte_spans & literal,
        const std::vector<std::string> & contents, const std::vector<bool> & enlarge, std::string skip, const py::kwargs & sampling) {
    const auto images  = to_images(arrays, ids, frames, contents, enlarge);
    const auto options = to_sampling_options(sampling);

    const pyfastv::picture_options pictures = { std::move(turbo), std::move(reducer), std::move(skip) };

    return run(self, [&](engine & e) {
        return std::make_unique<py_request>(py_request {
            e.prepare(prompt, images, add_bos, pictures, fastv, options, n_probs, { to_spans(answers), to_spans(literal) }) });
    });
}

std::unique_ptr<py_request> prepare_tokens(py_engine & self, const std::vector<int32_t> & tokens, int64_t n_probs,
        const std::optional<std::string> & fastv, const py::kwargs & sampling) {
    const auto options = to_sampling_options(sampling);

    return run(self, [&](engine & e) {
        return std::make_unique<py_request>(py_request { e.prepare_tokens(tokens, fastv, options, n_probs) });
    });
}

py::list to_list(const std::vector<std::vector<pyfastv::slot_event::seen_slice>> & pictures) {
    py::list res;
    for (const auto & slices : pictures) {
        py::list of_picture;
        for (const auto & slice : slices) {
            py::list patches;
            for (const auto & grid : slice.patches) {
                patches.append(py::make_tuple(grid.nx, grid.ny));
            }
            of_picture.append(py::make_tuple(patches, to_array(slice.places)));
        }
        res.append(of_picture);
    }
    return res;
}

py::list to_list(const std::vector<pyfastv::token_prob> & probs) {
    py::list res;
    for (const auto & prob : probs) {
        res.append(py::make_tuple(prob.token, py::bytes(prob.bytes), prob.logprob));
    }
    return res;
}

py::dict event_dict(const pyfastv::slot_event & event) {
    py::dict res("id"_a = event.id, "token"_a = py::none(), "bytes"_a = py::bytes(event.bytes), "logprob"_a = py::none(), "top"_a = py::list(),
            "finish"_a = event.finish, "error"_a = py::none(), "report"_a = py::none());

    if (event.token != LLAMA_TOKEN_NULL) {
        res["token"] = event.token;
    }
    if (!event.top.empty()) {
        res["logprob"] = event.logprob;
        res["top"]     = to_list(event.top);
    }
    if (event.failure) {
        res["error"] = to_exception(*event.failure);
    }
    if (event.ended()) {
        res["report"] = event.report;
        py::list kept;
        for (const auto & of_cut : event.kept) {
            kept.append(to_array(of_cut));
        }
        res["kept"]  = kept;
        res["grids"] = to_grids(event.grids);
        res["pictures"] = to_list(event.pictures);
    }
    return res;
}

py::list step(py_engine & self) {
    py::list res;
    for (const auto & event : run(self, [](engine & e) { return e.step(); })) {
        res.append(event_dict(event));
    }
    return res;
}

py::list reading(py_engine & self) {
    py::list res;
    for (const auto & prompt : run(self, [](engine & e) { return e.reading(); })) {
        res.append(py::make_tuple(prompt.id, prompt.n_done, prompt.n_tokens, prompt.n_cached));
    }
    return res;
}

//
// requests that threads wait for
//

int64_t prefill(py_engine & self, const std::string & prompt, const std::vector<rgb_array> & arrays, const std::vector<std::string> & ids,
        const py::object & progress, bool add_bos, int64_t reserve, const std::vector<int32_t> & frames,
        const std::optional<std::string> & turbo, const std::optional<std::string> & reducer, const py::object & started,
        const std::optional<std::string> & fastv, const byte_spans & answers, const byte_spans & literal,
        const std::vector<std::string> & contents, const std::vector<bool> & enlarge, const std::optional<std::string> & skip) {
    const auto images = to_images(arrays, ids, frames, contents, enlarge);

    std::optional<pyfastv::picture_options> pictures;
    if (turbo || reducer || skip) {
        pictures = { turbo.value_or(""), reducer.value_or(""), skip.value_or("") };
    }
    engine::progress_fn report;
    if (!progress.is_none()) {
        report = [&](int64_t done, int64_t all) {
            const py::gil_scoped_acquire gil;
            progress(done, all);
        };
    }

    const pyfastv::text_spans spans = { to_spans(answers), to_spans(literal) };
    const auto number = run(self, [&](engine & e) { return e.open(prompt, images, add_bos, reserve, pictures, fastv, spans); });
    if (!started.is_none()) {
        started(number);
    }
    run(self, [&](engine & e) { e.read(number, report); });

    return number;
}

py::object next(py_engine & self, const request_number & request) {
    const auto token = run(self, request, [](engine & e, int64_t id) { return e.next(id); });
    if (!token) {
        return py::none();
    }
    return py::make_tuple(token->token, py::bytes(token->bytes));
}

py::object next_with_probs(py_engine & self, const request_number & request) {
    const auto token = run(self, request, [](engine & e, int64_t id) { return e.next(id); });
    if (!token) {
        return py::none();
    }
    return py::make_tuple(token->token, py::bytes(token->bytes), token->logprob, to_list(token->top));
}

// the bytes stay where they are, with the array as their owner
py::array_t<uint8_t> save(py_engine & self, int64_t id) {
    auto state = std::make_unique<std::vector<uint8_t>>(run(self, [&](engine & e) { return e.save(id); }));

    const auto        n     = (py::ssize_t) state->size();
    const auto *      bytes = state->data();
    const py::capsule owner(state.release(), [](void * p) { delete static_cast<std::vector<uint8_t> *>(p); });

    return py::array_t<uint8_t>({ n }, { (py::ssize_t) 1 }, bytes, owner);
}

int64_t restore(py_engine & self, const byte_array & state) {
    const auto * data = state.data();
    const auto   size = (size_t) state.size();

    return run(self, [&](engine & e) { return e.restore(data, size); });
}

// [slice] F32 [n, d]
py::list embed(py_engine & self, const rgb_array & array, const std::string & id) {
    const auto images = to_images({ array }, { id }, {});
    const auto slices = run(self, [&](engine & e) { return e.embed(images[0]); });
    const auto d      = (py::ssize_t) self.get().n_embd_inp();

    py::list res;
    for (const auto & slice : slices) {
        py::array_t<float> values({ (py::ssize_t) slice.values.size()/d, d });
        std::copy(slice.values.begin(), slice.values.end(), values.mutable_data());
        res.append(values);
    }
    return res;
}

py::tuple picture_shape(py_engine & self, uint32_t width, uint32_t height, bool enlarge) {
    const auto shape = run(self, [&](engine & e) { return e.shape_of(width, height, enlarge); });
    return py::make_tuple(shape.n_tokens, shape.n_slices, shape.width, shape.height);
}

// [slice] uint8 [height, width, 3]
py::list pixels(py_engine & self, const rgb_array & picture, bool enlarge) {
    const auto images = to_images({ picture }, { "" }, {}, {}, { enlarge });

    py::list res;
    for (const auto & slice : run(self, [&](engine & e) { return e.pixels(images[0]); })) {
        res.append(py::array_t<uint8_t>({ slice.height, slice.width, 3 }, slice.rgb.data()));
    }
    return res;
}

} // namespace

void bind_engine(py::module_ & m) {
    py::class_<py_request>(m, "EngineRequest")
        .def_property_readonly("n_tokens", [](const py_request & self) { return self.impl.wanted.n_tokens; });

    py::class_<py_engine>(m, "Engine")
        .def(py::init([](const py::object & progress, const py::kwargs & options) {
            return std::make_unique<py_engine>(to_engine_options(options), progress);
        }), py::kw_only(), "progress"_a = py::none())
        .def("close", &py_engine::close)
        .def_property_readonly("closed", &py_engine::closed)
        .def_property_readonly("media_marker",  guarded<py_engine>(&engine::marker))
        .def_property_readonly("n_slots",       guarded<py_engine>(&engine::n_slots))
        .def_property_readonly("n_idle",        guarded<py_engine>(&engine::n_idle))
        .def_property_readonly("idle",          guarded<py_engine>(&engine::idle))
        .def_property_readonly("n_ctx",         guarded<py_engine>(&engine::n_ctx))
        .def_property_readonly("n_layer",       guarded<py_engine>(&engine::n_layer))
        .def_property_readonly("chat_template", guarded<py_engine>(&engine::chat_template))
        .def_property_readonly("bos_token",     guarded<py_engine>(&engine::bos_token))
        .def_property_readonly("eos_token",     guarded<py_engine>(&engine::eos_token))
        .def_property_readonly("control_tokens", [](py_engine & self) {
            py::list res;
            for (const auto & token : run(self, [](engine & e) { return e.control_tokens(); })) {
                res.append(py::make_tuple(to_text(token.name), token.strips_left, token.strips_right));
            }
            return res;
        })
        .def_property_readonly("description",   guarded<py_engine>(&engine::description))
        .def_property_readonly("finish_reason", [](py_engine & self) {
            return run(self, std::nullopt, [](engine & e, int64_t id) { return e.why_finished(id); });
        })
        .def("set_fastv",   [](py_engine & self, const std::string & spec) { run(self, [&](engine & e) { e.set_fastv(spec); }); }, "spec"_a)
        .def("fits",        [](py_engine & self, const std::string & spec) { return run(self, [&](engine & e) { return e.fits(spec); }); }, "spec"_a)
        .def("fit",         [](py_engine & self, const std::string & spec) { run(self, [&](engine & e) { e.fit(spec); }); }, "spec"_a)
        .def("fit_layers",  [](py_engine & self, const std::string & spec) {
            return run(self, [&](engine & e) { return e.fit_layers(spec); });
        }, "spec"_a)
        .def("set_turbo",   [](py_engine & self, const std::string & spec) { run(self, [&](engine & e) { e.set_turbo(spec); }); }, "spec"_a)
        .def("set_reducer",   [](py_engine & self, const std::string & spec) { run(self, [&](engine & e) { e.set_reducer(spec); }); }, "spec"_a)
        .def("set_skip",    [](py_engine & self, const std::string & spec) { run(self, [&](engine & e) { e.set_skip(spec); }); }, "spec"_a)
        .def("check",       [](py_engine & self, const std::string & turbo, const std::string & reducer, const std::string & skip) {
            run(self, [&](engine & e) { e.check({ turbo, reducer, skip }); });
        }, "turbo"_a, "reducer"_a, "skip"_a = "")
        .def("prepare",     &prepare, "prompt"_a, "images"_a, "image_ids"_a, "add_bos"_a, py::kw_only(),
             "frames"_a = std::vector<int32_t>(), "n_probs"_a = 0, "turbo"_a = "", "reducer"_a = "", "fastv"_a = py::none(),
             "answers"_a = byte_spans(), "literal"_a = byte_spans(), "contents"_a = std::vector<std::string>(),
             "enlarge"_a = std::vector<bool>(), "skip"_a = "")
        .def("prepare_tokens", &prepare_tokens, "tokens"_a, py::kw_only(), "n_probs"_a = 0, "fastv"_a = py::none())
        .def("tokenize",    [](py_engine & self, const std::string & text, bool add_special, bool parse_special) {
            return run(self, [&](engine & e) { return e.tokens_of_text(text, add_special, parse_special); });
        }, "text"_a, "add_special"_a, "parse_special"_a)
        .def("detokenize",  [](py_engine & self, const std::vector<int32_t> & tokens) {
            return py::bytes(run(self, [&](engine & e) { return e.text_of(tokens); }));
        }, "tokens"_a)
        .def("start",       [](py_engine & self, py_request & request, bool cache_prompt) {
            return run(self, [&](engine & e) { return e.start(std::exchange(request.impl, {}), cache_prompt); });
        }, "request"_a, py::kw_only(), "cache_prompt"_a = true)
        .def("step",        &step)
        .def("reading",     &reading)
        .def("prefill",     &prefill, "prompt"_a, "images"_a, "image_ids"_a, "progress"_a, "add_bos"_a, "reserve"_a,
             "frames"_a = std::vector<int32_t>(), "turbo"_a = py::none(), "reducer"_a = py::none(), "started"_a = py::none(),
             "fastv"_a = py::none(), "answers"_a = byte_spans(), "literal"_a = byte_spans(),
             "contents"_a = std::vector<std::string>(), "enlarge"_a = std::vector<bool>(), "skip"_a = py::none())
        .def("start",       [](py_engine & self, const request_number & request, int64_t n_probs, const py::kwargs & sampling) {
            const auto options = to_sampling_options(sampling);
            run(self, request, [&](engine & e, int64_t id) { e.begin(id, options, n_probs); });
        }, "request"_a = py::none(), py::kw_only(), "n_probs"_a = 0)
        .def("next",        &next, "request"_a = py::none())
        .def("next_with_probs", &next_with_probs, "request"_a = py::none())
        .def("save",        &save, "request"_a)
        .def("restore",     &restore, "state"_a)
        .def("feed",        [](py_engine & self, int32_t token, const request_number & request) {
            run(self, request, [&](engine & e, int64_t id) { e.feed(id, token); });
        }, "token"_a, "request"_a = py::none())
        .def("logits",      [](py_engine & self, const request_number & request) {
            return to_array(run(self, request, [](engine & e, int64_t id) { return e.logits(id); }));
        }, "request"_a = py::none())
        .def("reason",      [](py_engine & self, const request_number & request) {
            return run(self, request, [](engine & e, int64_t id) { return e.why_finished(id); });
        }, "request"_a = py::none())
        .def("report",      [](py_engine & self, const request_number & request) {
            return run(self, request, [](engine & e, int64_t id) { return e.report(id); });
        }, "request"_a = py::none())
        .def("kept",        [](py_engine & self, int32_t cut, const request_number & request) {
            return to_array(run(self, request, [&](engine & e, int64_t id) { return e.kept(id, cut); }));
        }, "cut"_a, "request"_a = py::none())
        .def("scores",      [](py_engine & self, int32_t cut, const request_number & request) {
            return to_array(run(self, request, [&](engine & e, int64_t id) { return e.scores(id, cut); }));
        }, "cut"_a, "request"_a = py::none())
        .def("grids",       [](py_engine & self, const request_number & request) {
            return to_grids(run(self, request, [](engine & e, int64_t id) { return e.grids(id); }));
        }, "request"_a = py::none())
        .def("places",      [](py_engine & self, const request_number & request) {
            return to_array(run(self, request, [](engine & e, int64_t id) { return e.places(id); }));
        }, "request"_a = py::none())
        .def("pictures",    [](py_engine & self, const request_number & request) {
            return to_list(run(self, request, [](engine & e, int64_t id) { return e.pictures(id); }));
        }, "request"_a = py::none())
        .def("embed",       &embed, "image"_a, "image_id"_a)
        .def("pixels",      &pixels, "picture"_a, "enlarge"_a = true)
        .def("picture_shape", &picture_shape, "width"_a, "height"_a, "enlarge"_a)
        .def("cancel",      [](py_engine & self, int64_t id) { self.get().cancel(id); }, "id"_a)
        .def("reset",       [](py_engine & self) { run(self, [](engine & e) { e.reset(); }); });
}
