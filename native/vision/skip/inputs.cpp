// The graph of an encoder that computes some units of a picture alone, and its inputs: models/qwen2vl.cpp, models/qwen3vl.cpp,
// models/llava.cpp, models/siglip.cpp, models/internvl.cpp.

#include "vision/skip/skip.h"

#include "vision/call_sites.h"
#include "vision/encoders.h"

#include "clip.h"
#include "clip-impl.h"
#include "clip-model.h"

#include "ggml-backend.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

namespace pyfastv {
namespace {

constexpr const char * kept_name = "pyfastv_kept";

// patches of units, a side and in all
constexpr int32_t merge = 2, n_merged = merge*merge;

template <typename T>
void upload(ggml_cgraph * gf, const char * name, const std::vector<T> & values) {
    auto * t = ggml_graph_get_tensor(gf, name);
    if (!t || ggml_nbytes(t) != values.size()*sizeof(T)) {
        throw std::runtime_error(std::string("the encoder's graph has no input ") + name + " of " + std::to_string(values.size()) + " numbers");
    }
    ggml_backend_tensor_set(t, values.data(), 0, ggml_nbytes(t));
}

// [n] the window of each unit that is encoded
std::vector<int32_t> windows_of(const encoded_units & units, const clip_hparams & hparams) {
    const int32_t pixels = hparams.attn_window_size > 0 ? hparams.attn_window_size : 112;
    const int32_t side   = std::max(1, pixels/hparams.patch_size/merge); // in units
    const int32_t n_x    = (units.nx + side - 1)/side;

    std::vector<int32_t> res;
    for (const int32_t unit : units.kept) {
        res.push_back(unit/units.nx/side*n_x + unit % units.nx/side);
    }
    return res;
}

// In the graph the units are in the order of their windows; [n] their numbers among those that are encoded. Sets what the graph
// needs for that.
std::vector<int32_t> set_windows(const encoded_units & units, const clip_hparams & hparams, ggml_cgraph * gf) {
    const auto   window = windows_of(units, hparams);
    const size_t n      = window.size();

    std::vector<int32_t> order(n), at(n);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return window[a] < window[b]; });
    for (size_t i = 0; i < n; ++i) {
        at[order[i]] = (int32_t) i;
    }

    // [patches, patches]
    std::vector<float> mask(n*n*n_merged*n_merged, std::numeric_limits<float>::lowest());
    for (size_t first = 0, last = 0; first < n; first = last) {
        while (last < n && window[order[last]] == window[order[first]]) {
            last++;
        }
        for (size_t row = first*n_merged; row < last*n_merged; ++row) {
            const auto begin = mask.begin() + row*n*n_merged;
            std::fill(begin + first*n_merged, begin + last*n_merged, 0.0f);
        }
    }
    upload(gf, "inv_window_idx", order);
    upload(gf, "window_idx",     at);
    upload(gf, "window_mask",    mask);

    return order;
}

// of take_patches(): rows of x
std::vector<int32_t> patches_of(const encoded_units & units, int32_t merge, size_t n_rows, bool cls_last) {
    const int32_t nx = units.nx*merge, n_patches = nx*units.ny*merge;
    const bool    cls   = n_rows > units.kept.size()*merge*merge;
    const int32_t first = cls && !cls_last ? 1 : 0;

    std::vector<int32_t> res;
    if (first > 0) {
        res.push_back(0);
    }
    for (const int32_t unit : units.kept) {
        for (int32_t y = 0; y < merge; ++y) {
            for (int32_t x = 0; x < merge; ++x) {
                res.push_back(first + (unit/units.nx*merge + y)*nx + unit % units.nx*merge + x);
            }
        }
    }
    if (cls && cls_last) {
        res.push_back(n_patches);
    }
    return res;
}

ggml_tensor * take(ggml_context * ctx0, ggml_tensor * x, int64_t n) {
    auto * kept = ggml_new_tensor_1d(ctx0, GGML_TYPE_I32, n);
    ggml_set_name(kept, kept_name);
    ggml_set_input(kept);

    return ggml_get_rows(ctx0, x, kept);
}

} // namespace

ggml_tensor * take_units(ggml_context * ctx0, ggml_tensor * x, const encoded_units * units) {
    if (!units) {
        return x;
    }
    const int64_t n_embd = x->ne[0], n = (int64_t) units->kept.size();

    x = ggml_reshape_2d(ctx0, x, n_embd*n_merged, (int64_t) units->nx*units->ny);
    return ggml_reshape_3d(ctx0, take(ctx0, x, n), n_embd, n*n_merged, 1);
}

ggml_tensor * take_patches(ggml_context * ctx0, ggml_tensor * x, const encoded_units * units, int32_t merge) {
    if (!units) {
        return x;
    }
    const int64_t of_unit = merge*merge, n_cls = x->ne[1] - of_unit*units->nx*units->ny;
    return take(ctx0, x, of_unit*(int64_t) units->kept.size() + n_cls);
}

ggml_tensor * join_patches(ggml_context * ctx0, ggml_tensor * x, int32_t merge) {
    const int64_t of_unit = merge*merge;
    return ggml_reshape_2d(ctx0, x, x->ne[0]*of_unit, x->ne[1]/of_unit);
}

ggml_tensor * pool_patches(ggml_context * ctx0, ggml_tensor * x, int32_t merge) {
    const int64_t n_embd = x->ne[0], of_unit = merge*merge, n = x->ne[1]/of_unit;

    x = ggml_reshape_3d(ctx0, x, n_embd, of_unit, n);
    x = ggml_cont(ctx0, ggml_permute(ctx0, x, 1, 0, 2, 3)); // [of_unit, n_embd, n]
    return ggml_reshape_2d(ctx0, ggml_mean(ctx0, x), n_embd, n);
}

int32_t count_patches(const encoded_units * units, int32_t n_patches) {
    return units ? (int32_t) units->kept.size()*(n_patches/(units->nx*units->ny)) : n_patches;
}

bool set_inputs(const clip_ctx * ctx, const clip_image_f32 & picture, ggml_cgraph * gf) {
    const auto * units = picture.pyfastv_units.get();
    const auto * kept  = units ? ggml_graph_get_tensor(gf, kept_name) : nullptr;
    if (!kept) {
        return false;
    }
    const auto & rule    = *rule_of(ctx);
    const auto & hparams = *clip_get_hparams(ctx);

    if (rule.skips == skipping::patches) {
        upload(gf, kept_name, patches_of(*units, hparams.n_merge, kept->ne[0], rule.cls_at == cls_row::last));
        return false;
    }
    upload(gf, kept_name, units->kept);

    std::vector<int32_t> order(units->kept.size());
    if (ggml_graph_get_tensor(gf, "window_mask")) {
        order = set_windows(*units, hparams, gf);
    } else {
        std::iota(order.begin(), order.end(), 0);
    }

    // y, x, y, x of every patch, [4, patches]
    const size_t n = order.size()*n_merged;

    std::vector<int32_t> positions(4*n);
    for (size_t i = 0; i < n; ++i) {
        const int32_t unit = units->kept[order[i/n_merged]];
        const int32_t in   = (int32_t) (i % n_merged);
        const int32_t y    = unit/units->nx*merge + in/merge;
        const int32_t x    = unit % units->nx*merge + in % merge;

        positions[i]     = positions[2*n + i] = y;
        positions[n + i] = positions[3*n + i] = x;
    }
    upload(gf, "positions", positions);

    return true;
}

} // namespace pyfastv
