#include "vision/turbo/turbo.h"

#include "vision/turbo/plan.h"
#include "vision/call_sites.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

namespace pyfastv {

int32_t turbo::count(int32_t n) const {
    return restore ? n : count_left(merging_steps(params, n_blocks, n), n);
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
    upload<float>  (in_place, (float) -first_patch(), 1.0f);
    upload<int32_t>(in_token, 0, 1);
}

static std::vector<int32_t> download(const ggml_tensor * t) {
    std::vector<int32_t> res(ggml_nelements(t));
    ggml_backend_tensor_get(t, res.data(), 0, ggml_nbytes(t));
    return res;
}

// a number that a graph left, which is to be an index of n
template <typename T>
static int32_t index_below(int32_t n, T value) {
    // written so that NaN fails
    if (!(value >= 0 && value < n)) {
        throw std::runtime_error("the merging of the picture's tokens was not computed: there is an index " + std::to_string(value) +
                " of " + std::to_string(n));
    }
    return (int32_t) value;
}

void turbo::forget() {
    places.clear();
    sizes.clear();
    targets.clear();
}

void turbo::read_outputs() {
    forget();

    if (steps.empty()) {
        return;
    }

    // the token that each input token is part of, CLS included
    const int32_t first = first_patch();

    std::vector<int32_t> part_of(steps[0].n_in);
    std::iota(part_of.begin(), part_of.end(), 0);

    for (const auto & step : steps) {
        const auto ranked   = download(step.ranked);
        const auto partners = download(step.partners);
        const auto order    = download(step.order);

        const int32_t n_evens = (int32_t) partners.size();
        const int32_t n_left  = step.n_in - step.n_merged;

        std::vector<int32_t> into(step.n_in);
        for (int32_t i = 0; i < n_left; ++i) {
            into[index_below(step.n_in, order[i])] = i;
        }
        for (int32_t i = 0; i < step.n_merged; ++i) {
            const int32_t even = index_below(n_evens, ranked[i]);
            const int32_t odd  = index_below((step.n_in - cls)/2, partners[even]);
            into[first + 2*even] = into[first + 2*odd + 1];
        }
        for (auto & token : part_of) {
            token = into[token]; // less than n_left
        }
    }

    const auto n_patches = (int32_t) part_of.size() - cls;

    std::vector<float> raster(ggml_nelements(out_place));
    ggml_backend_tensor_get(out_place, raster.data(), 0, ggml_nbytes(out_place));

    std::vector<int32_t> new_places, new_targets;
    for (size_t i = first; i < raster.size() - cls + first; ++i) {
        new_places.push_back(index_below(n_patches, raster[i]));
    }
    std::vector<int32_t> new_sizes(new_places.size());
    for (int32_t i = first; i < first + n_patches; ++i) {
        new_targets.push_back(index_below((int32_t) new_places.size(), part_of[i] - first));
        new_sizes[new_targets.back()]++;
    }

    places  = std::move(new_places);
    sizes   = std::move(new_sizes);
    targets = std::move(new_targets);
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
