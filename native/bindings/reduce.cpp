#include "bindings/bindings.h"

#include "choose/reducers/reduce.h"
#include "products/products.h"
#include "runner/errors.h"
#include "runner/options.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace py = pybind11;

using namespace py::literals;

using matrix    = py::array_t<float, py::array::c_style | py::array::forcecast>;
using grid_list = std::vector<std::pair<int32_t, int32_t>>;

static std::vector<pyfastv::patch_grid> to_slices(const grid_list & grids) {
    std::vector<pyfastv::patch_grid> res;
    for (const auto & [nx, ny] : grids) {
        if (nx < 1 || ny < 1) {
            throw std::invalid_argument("grids has a slice of " + std::to_string(nx) + " x " + std::to_string(ny) + " tokens; each side is at least 1");
        }
        res.push_back({ nx, ny });
    }
    return res;
}

static std::vector<pyfastv::patch_grid> to_slices(const std::optional<grid_list> & grids, int64_t n) {
    if (!grids) {
        return { { (int32_t) n, 1 } };
    }
    auto    res = to_slices(*grids);
    int64_t sum = 0;
    for (const auto & slice : res) {
        sum += (int64_t) slice.nx*slice.ny;
    }
    if (sum != n) {
        throw std::invalid_argument("grids has " + std::to_string(sum) + " tokens and embeddings " + std::to_string(n) + "; as many are expected");
    }
    return res;
}

static bool is_main_thread() {
    return PyThread_get_thread_ident() == py::module_::import("threading").attr("main_thread")().attr("ident").cast<unsigned long>();
}

static py::dict reduce(const matrix & embeddings, const std::string & spec, const std::optional<grid_list> & grids,
        const std::optional<matrix> & question, int64_t n_threads) {
    if (embeddings.ndim() != 2 || embeddings.size() == 0) {
        throw std::invalid_argument("embeddings must be a matrix [tokens, width] with at least one token");
    }
    if (question && question->ndim() != 1) {
        throw std::invalid_argument("question must be a vector");
    }
    pyfastv::check_whole("n_threads", n_threads, 1, GGML_MAX_N_THREADS);

    pyfastv::visual_embeddings in;
    in.values     = embeddings.data();
    in.d          = embeddings.shape(1);
    in.slices     = to_slices(grids, embeddings.shape(0));
    in.question   = question ? question->data() : nullptr;
    in.n_question = question ? question->size() : 0;

    const auto how = pyfastv::parse_reducer(spec);

    const auto res = [&] {
        const pyfastv::stop_fn interrupted = [main = is_main_thread()] {
            const py::gil_scoped_acquire gil;
            return main && PyErr_CheckSignals() != 0;
        };
        const native_scope scope;
        const auto backend = pyfastv::make_cpu_backend((int32_t) n_threads, &interrupted);
        try {
            return pyfastv::reduce(how, in, backend.get(), pyfastv::for_threads(interrupted));
        } catch (const pyfastv::aborted &) {
            const py::gil_scoped_acquire gil;
            throw py::error_already_set();
        }
    }();

    const auto m = (py::ssize_t) res.place.size();

    py::array_t<float> values({ m, (py::ssize_t) in.d }), centre({ m, (py::ssize_t) 3 });
    std::copy(res.values.begin(), res.values.end(), values.mutable_data());
    for (py::ssize_t o = 0; o < m; ++o) {
        std::copy(res.centre[o].begin(), res.centre[o].end(), centre.mutable_data(o, 0));
    }
    grid_list slices;
    for (const auto & slice : res.slices) {
        slices.emplace_back(slice.nx, slice.ny);
    }

    return py::dict("embeddings"_a = values, "place"_a = py::array_t<int32_t>(m, res.place.data()), "centre"_a = centre,
        "member"_a = py::array_t<int32_t>(res.member.size(), res.member.data()), "grids"_a = slices);
}

void bind_reduce(py::module_ & m) {
    m.def("reduce", [](const matrix & embeddings, const std::string & spec, const std::optional<grid_list> & grids,
            const std::optional<matrix> & question, int64_t n_threads) {
        return pyfastv::option_checked([&] { return reduce(embeddings, spec, grids, question, n_threads); });
    }, "embeddings"_a, "spec"_a, py::kw_only(), "grids"_a = py::none(), "question"_a = py::none(), "n_threads"_a = 1);
    m.def("count_reduced", [](const std::string & spec, const grid_list & grids) {
        return pyfastv::option_checked([&] { return pyfastv::count_reduced(pyfastv::parse_reducer(spec), to_slices(grids)); });
    }, "spec"_a, "grids"_a);
}
