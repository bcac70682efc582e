#include "bindings/bindings.h"

#include "build_info.h"

#include "choose/choose.h"
#include "choose/similarity.h"
#include "products/parallel.h"
#include "pyfastv.h"
#include "choose/reducers/reduce.h"
#include "runner/cores.h"
#include "runner/errors.h"
#include "runner/log.h"
#include "runner/model_file.h"
#include "runner/options.h"
#include "runner/request_schedule.h"
#include "settings/schedule.h"
#include "vision/encoders.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "gguf.h"
#include "llama-cpp.h"
#include "llama.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace py = pybind11;

using namespace py::literals;

static py::dict build_info() {
    return py::dict(
        "pyfastv"_a = pyfastv_version(), "llama_cpp_python"_a = PYFASTV_PIN_VERSION, "llama_cpp"_a = PYFASTV_PIN_COMMIT,
        "compiler"_a = PYFASTV_COMPILER, "build_type"_a = PYFASTV_BUILD_TYPE, "cpu_flags"_a = PYFASTV_CPU_FLAGS,
        "patches"_a = py::str(PYFASTV_PATCHES).attr("split")());
}

static const char * device_type(ggml_backend_dev_t dev) {
    switch (ggml_backend_dev_type(dev)) {
        case GGML_BACKEND_DEVICE_TYPE_CPU:   return "cpu";
        case GGML_BACKEND_DEVICE_TYPE_GPU:   return "gpu";
        case GGML_BACKEND_DEVICE_TYPE_IGPU:  return "igpu";
        case GGML_BACKEND_DEVICE_TYPE_ACCEL: return "accel";
        default:                             return "other";
    }
}

static py::list backends() {
    py::list res;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        const auto dev = ggml_backend_dev_get(i);
        res.append(py::dict("name"_a = ggml_backend_dev_name(dev), "description"_a = ggml_backend_dev_description(dev), "type"_a = device_type(dev)));
    }
    return res;
}

// where a cut that reads attention can be
static py::list cut_layers(const llama_model * model) {
    py::list res;
    for (int32_t il = 1; il < llama_model_n_layer(model); ++il) {
        if (!pyfastv_unsupported_reason(model) && !pyfastv_unsupported_layer(model, il)) {
            res.append(il);
        }
    }
    return res;
}

// its header only
static llama_model_ptr header_of(const std::filesystem::path & model_path) {
    const py::gil_scoped_release release;

    const auto path = model_path.string();
    pyfastv::check_model_file(path);

    const pyfastv::log_scope log(false);

    auto params = llama_model_default_params();
    params.no_alloc  = true;
    params.load_mode = LLAMA_LOAD_MODE_NONE;

    llama_model_ptr model(llama_model_load_from_file(path.c_str(), params));
    if (!model) {
        throw log.failure(pyfastv::error_kind::model, path, "cannot be loaded");
    }
    return model;
}

static py::dict model_info(const std::filesystem::path & model_path) {
    const auto model = header_of(model_path);

    char desc[256], arch[128];
    llama_model_desc(model.get(), desc, sizeof(desc));
    llama_model_meta_val_str(model.get(), "general.architecture", arch, sizeof(arch));

    return py::dict(
        "architecture"_a = arch, "description"_a = desc, "n_layer"_a = llama_model_n_layer(model.get()),
        "n_embd"_a = llama_model_n_embd(model.get()), "n_ctx_train"_a = llama_model_n_ctx_train(model.get()),
        "n_params"_a = llama_model_n_params(model.get()), "size_bytes"_a = llama_model_size(model.get()),
        "unsupported_reason"_a = optional_text(pyfastv_unsupported_reason(model.get())),
        "cut_layers"_a = cut_layers(model.get()),
        "recurrent_layers"_a = llama_model_is_hybrid(model.get()),
        "chat_template"_a = optional_text(llama_model_chat_template(model.get(), nullptr)));
}

static py::dict vision_info(const std::filesystem::path & mmproj_path) {
    const auto path = mmproj_path.string();

    pyfastv::check_mmproj_file(path);

    const pyfastv::log_scope log(false);

    const gguf_context_ptr file(gguf_init_from_file(path.c_str(), { /* no_alloc */ true, /* ctx */ nullptr }));
    if (!file) {
        throw log.failure(pyfastv::error_kind::model, path, "cannot be read");
    }

    // the key's place in the file, if it has this type; -1 if not
    const auto find = [&](const char * key, gguf_type type) {
        const int64_t at = gguf_find_key(file.get(), key);
        return at >= 0 && gguf_get_kv_type(file.get(), at) == type ? at : -1;
    };
    const auto u32 = [&](const char * key) {
        const int64_t at = find(key, GGUF_TYPE_UINT32);
        return at < 0 ? 0 : gguf_get_val_u32(file.get(), at);
    };

    const uint32_t size = u32("clip.vision.image_size"), patch = u32("clip.vision.patch_size");
    if (patch == 0) {
        throw pyfastv::error(pyfastv::error_kind::model, path + ": is not an mmproj file with a vision encoder (clip.has_vision_encoder, clip.vision.patch_size)");
    }

    const int64_t     at        = find("clip.projector_type", GGUF_TYPE_STRING);
    const std::string projector = at < 0 ? "mlp" : gguf_get_val_str(file.get(), at);

    py::object visual_tokens = py::none();
    if (const auto * rule = pyfastv::find_encoder(projector); rule && rule->fixed()) {
        const int64_t given = rule->merge_key.empty() ? 0 : u32(rule->merge_key.c_str());
        const int64_t side  = size/patch/(given > 0 ? given : rule->merge_default);
        visual_tokens = py::int_(side*side);
    }
    return py::dict(
        "projector"_a = projector, "image_size"_a = size, "patch_size"_a = patch, "n_layer"_a = u32("clip.vision.block_count"),
        "visual_tokens"_a = visual_tokens);
}

static const pyfastv::encoder_rule * rule_of(const std::string & projector, const std::set<std::string> & tensors) {
    return pyfastv::find_encoder(projector, [&](const char * name) { return tensors.count(name) > 0; });
}

static std::vector<std::string> encoder_matrices(const std::string & projector, const std::set<std::string> & tensors) {
    const auto * rule = rule_of(projector, tensors);

    std::vector<std::string> res;
    std::copy_if(tensors.begin(), tensors.end(), std::back_inserter(res),
            [&](const auto & name) { return pyfastv::is_matrix(rule, name); });
    return res;
}

static py::object encoder_sizes(const std::string & projector, const std::set<std::string> & tensors) {
    const auto * rule = rule_of(projector, tensors);
    return rule ? py::object(py::make_tuple(rule->fixed(), rule->merge_key, rule->merge_default)) : py::none();
}

static pyfastv_cut parse_cut(const std::string & text) {
    const auto schedule = pyfastv::parse_schedule(text);
    if (schedule.cuts.size() != 1) {
        throw std::invalid_argument("\"" + text + "\" has " + std::to_string(schedule.cuts.size()) + " cuts; one is taken here");
    }
    return pyfastv::to_params(schedule, /* n_layer */ 100).cuts[0];
}

using scores_array  = py::array_t<float, py::array::c_style | py::array::forcecast>;
using present_array = py::array_t<bool,  py::array::c_style | py::array::forcecast>;
using grid_list     = std::vector<std::pair<int32_t, int32_t>>;

static pyfastv::picture_scores make_picture(const scores_array & scores, const std::optional<grid_list> & grids, const std::optional<present_array> & present,
        const std::optional<scores_array> & similarity) {
    if (scores.ndim() != 1) {
        throw std::invalid_argument("scores has " + std::to_string(scores.ndim()) + " dimensions; one is expected");
    }
    if (present && (present->ndim() != 1 || present->size() != scores.size())) {
        throw std::invalid_argument("present must be a vector as long as scores: " + std::to_string(scores.size()));
    }

    const size_t n = scores.size();

    pyfastv::picture_scores picture;
    picture.scores.assign(scores.data(), scores.data() + n);
    picture.present.assign(n, 1);

    if (present) {
        std::copy_n(present->data(), n, picture.present.begin());
    }
    if (similarity) {
        const auto m = std::count(picture.present.begin(), picture.present.end(), 1);
        if (similarity->ndim() != 2 || similarity->shape(0) != m || similarity->shape(1) != m) {
            throw std::invalid_argument("similarity must be a matrix with " + std::to_string(m) + " rows and columns, one for each token that is present");
        }
        picture.similarity = { { (size_t) m, similarity->data() } };
    }
    if (!grids) {
        picture.grids = { { (int32_t) n, 1 } };
        return picture;
    }

    uint64_t sum = 0;
    for (const auto & [nx, ny] : *grids) {
        if (nx < 1 || ny < 1) {
            throw std::invalid_argument("grids has a slice of " + std::to_string(nx) + " x " + std::to_string(ny) + " tokens; each side is at least 1");
        }
        sum += (uint64_t) nx*ny;
        picture.grids.push_back({ nx, ny });
    }
    if (sum != n) {
        throw std::invalid_argument("grids has " + std::to_string(sum) + " tokens and scores " + std::to_string(n) + "; as many are expected");
    }
    return picture;
}

// hidden: [n, n_embd], a row for every token of the picture
static pyfastv::similarity_matrix similarity_of(const pyfastv::picture_scores & picture, const scores_array & hidden, ggml_backend_t backend) {
    std::vector<std::shared_ptr<const float>> rows;
    for (size_t i = 0; i < picture.present.size(); ++i) {
        if (picture.present[i]) {
            rows.emplace_back(hidden.data(i, 0), [](const float *) {});
        }
    }
    return pyfastv::similarities(rows, hidden.shape(1), backend, nullptr);
}

static py::array_t<int32_t> choose(const scores_array & scores, const std::string & cut, const std::optional<grid_list> & grids,
        const std::optional<present_array> & present, const std::optional<scores_array> & similarity,
        const std::optional<scores_array> & hidden, int64_t n_threads) {
    auto       picture = make_picture(scores, grids, present, similarity);
    const auto rule    = parse_cut(cut);

    if (hidden && (hidden->ndim() != 2 || hidden->shape(0) != scores.size() || hidden->shape(1) == 0)) {
        throw std::invalid_argument("hidden must be a matrix with " + std::to_string(scores.size()) + " rows, one for each token");
    }
    if (hidden && similarity) {
        throw std::invalid_argument("hidden and similarity cannot both be given: one is computed from the other");
    }
    pyfastv::check_whole("n_threads", n_threads, 1, GGML_MAX_N_THREADS);

    const auto kept = [&] {
        const native_scope scope;

        const auto backend = pyfastv::make_cpu_backend((int32_t) n_threads);
        picture.run = [&](size_t n, const std::function<void(size_t)> & f) { pyfastv::in_parallel(n, backend.get(), f); };

        pyfastv::similarity_matrix matrix;
        if (hidden) {
            matrix             = similarity_of(picture, *hidden, backend.get());
            picture.similarity = matrix.view();
        }
        return pyfastv::choose(picture, rule);
    }();
    return py::array_t<int32_t>(kept.size(), kept.data());
}

static py::array_t<float> random_scores(size_t n, uint32_t seed) {
    const auto scores = pyfastv::random_scores(n, seed);
    return py::array_t<float>(scores.size(), scores.data());
}

void bind_info(py::module_ & m) {
    const py::call_guard<pyfastv::abort_guard> guarded;

    m.def("system_info", &llama_print_system_info, guarded);
    m.def("usable_cores", [](const std::string & root, const std::optional<std::vector<int32_t>> & cpus) {
        return cpus ? pyfastv::usable_cores(root, *cpus) : pyfastv::usable_cores();
    }, "root"_a = "", "cpus"_a = py::none());
    m.def("build_info", &build_info);
    m.def("backends", &backends, guarded);
    m.def("model_info", &model_info, "model_path"_a, guarded);
    m.def("fit_layers", [](const std::filesystem::path & model_path, const std::vector<std::string> & specs) {
        const auto model = header_of(model_path);

        std::vector<std::vector<std::pair<int32_t, int32_t>>> res;
        for (const auto & spec : specs) {
            res.push_back(pyfastv::fit_layers(model.get(), spec));
        }
        return res;
    }, "model_path"_a, "specs"_a, guarded);
    m.def("vision_info", &vision_info, "mmproj_path"_a, guarded);
    m.def("encoder_matrices", &encoder_matrices, "projector"_a, "tensors"_a);
    m.def("encoder_sizes", &encoder_sizes, "projector"_a, "tensors"_a);
    m.def("choose", [](const scores_array & scores, const std::string & cut, const std::optional<grid_list> & grids,
            const std::optional<present_array> & present, const std::optional<scores_array> & similarity,
            const std::optional<scores_array> & hidden, int64_t n_threads) {
        return pyfastv::option_checked([&] { return choose(scores, cut, grids, present, similarity, hidden, n_threads); });
    }, "scores"_a, "cut"_a, py::kw_only(), "grids"_a = py::none(), "present"_a = py::none(), "similarity"_a = py::none(),
          "hidden"_a = py::none(), "n_threads"_a = 1);
    m.def("random_scores", &random_scores, "n"_a, "seed"_a);
}
