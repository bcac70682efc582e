#include "turbo/turbo.h"

#include "turbo/plan.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cstdio>
#include <numeric>

namespace pyfastv {

int32_t turbo::count(int32_t n_patches) const {
    return count_left(merging_steps(params, n_blocks, n_patches), n_patches);
}

template <typename T>
static void upload(ggml_tensor * t, T first, T increment) {
    if (!t || !t->buffer) {
        return; // a graph in which nothing is merged
    }
    std::vector<T> values(ggml_nelements(t));
    for (auto & value : values) {
        value  = first;
        first += increment;
    }
    ggml_backend_tensor_set(t, values.data(), 0, ggml_nbytes(t));
}

void turbo::set_inputs() const {
    upload<float>  (in_size,  1.0f, 0.0f);
    upload<float>  (in_place, cls ? -1.0f : 0.0f, 1.0f);
    upload<int32_t>(in_token, 0, 1);
}

static std::vector<int32_t> download(const ggml_tensor * t) {
    std::vector<int32_t> res(ggml_nelements(t));
    ggml_backend_tensor_get(t, res.data(), 0, ggml_nbytes(t));
    return res;
}

void turbo::read_outputs() {
    places.clear();
    sizes.clear();
    targets.clear();

    if (steps.empty()) {
        return;
    }

    // the token that each input token is part of, CLS included
    std::vector<int32_t> part_of(steps[0].n_in);
    std::iota(part_of.begin(), part_of.end(), 0);

    for (const auto & step : steps) {
        const auto ranked   = download(step.ranked);
        const auto partners = download(step.partners);
        const auto order    = download(step.order);

        std::vector<int32_t> into(step.n_in);
        for (int32_t i = 0; i < step.n_in - step.n_merged; ++i) {
            into[order[i]] = i;
        }
        for (int32_t i = 0; i < step.n_merged; ++i) {
            const int32_t even = ranked[i];
            into[cls + 2*even] = into[cls + 2*partners[even] + 1];
        }
        for (auto & token : part_of) {
            token = into[token];
        }
    }

    std::vector<float> raster(ggml_nelements(out_place));
    ggml_backend_tensor_get(out_place, raster.data(), 0, ggml_nbytes(out_place));
    places.assign(raster.begin() + cls, raster.end());

    sizes.resize(places.size());
    for (size_t i = cls; i < part_of.size(); ++i) {
        targets.push_back(part_of[i] - cls);
        sizes[targets.back()]++;
    }
}

bool turbo_positions(const mtmd_context * ctx, int32_t n_tokens, int32_t first, int32_t * positions) {
    const auto & turbo = clip_get_turbo(mtmd_get_vision(ctx));

    if (!turbo || (int32_t) turbo->places.size() != n_tokens) {
        fprintf(stderr, "pyfastv: the places of a picture's %d tokens are not known: %zu were encoded last\n", n_tokens,
                turbo ? turbo->places.size() : (size_t) 0);
        return false;
    }
    std::transform(turbo->places.begin(), turbo->places.end(), positions, [first](int32_t place) { return first + place; });
    return true;
}

} // namespace pyfastv
