// Reducers that compare the frames of a video: VidCom2, EVS.

#include "choose/reducers/methods.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace pyfastv {
namespace {

double cosine(const double * a, const float * b, int64_t d) {
    double ab = 0, aa = 0, bb = 0;
    for (int64_t k = 0; k < d; ++k) {
        ab += a[k]*b[k];
        aa += a[k]*a[k];
        bb += (double) b[k]*b[k];
    }
    return aa > 0 && bb > 0 ? ab/std::sqrt(aa*bb) : 0;
}

// of rows [i0, i1)
std::vector<double> mean_of(const visual_embeddings & in, int64_t i0, int64_t i1) {
    std::vector<double> res(in.d, 0);
    for (int64_t i = i0; i < i1; ++i) {
        for (int64_t k = 0; k < in.d; ++k) {
            res[k] += in.values[i*in.d + k];
        }
    }
    for (double & value : res) {
        value /= i1 - i0;
    }
    return res;
}

// the m highest of `tokens`, in place
void keep_highest(std::vector<int32_t> & tokens, const std::vector<double> & scores, size_t m) {
    std::stable_sort(tokens.begin(), tokens.end(), [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
    tokens.resize(m);
    std::sort(tokens.begin(), tokens.end());
}

} // namespace

std::vector<int32_t> pick_vidcom2(const visual_embeddings & in, size_t m) {
    constexpr double temperature = 0.01; // the paper's

    const auto    sizes = sizes_of(in.slices);
    const int64_t n     = in.n();
    const size_t  T     = sizes.size();

    const auto video = mean_of(in, 0, n);

    std::vector<double> scores(n), unique(T, 0); // how unlike the means a token is; how unlike the video a frame is
    for (int64_t t = 0, first = 0; t < (int64_t) T; first += sizes[t++]) {
        const auto frame = mean_of(in, first, first + sizes[t]);
        for (int64_t i = first; i < first + (int64_t) sizes[t]; ++i) {
            const double to_video = -cosine(video.data(), in.values + i*in.d, in.d);
            scores[i]  = to_video - cosine(frame.data(), in.values + i*in.d, in.d);
            unique[t] += to_video/sizes[t];
        }
    }

    const double most = *std::max_element(unique.begin(), unique.end());
    double sum = 0;
    for (double & u : unique) {
        u    = std::exp((u - most)/temperature);
        sum += u;
    }
    std::vector<double> want(T);
    for (size_t t = 0; t < T; ++t) {
        want[t] = sizes[t]*(1 + unique[t]/sum - 1.0/T);
    }

    const auto budgets = share_out(m, want, sizes);

    std::vector<int32_t> res;
    for (size_t t = 0, first = 0; t < T; first += sizes[t++]) {
        std::vector<int32_t> tokens(sizes[t]);
        std::iota(tokens.begin(), tokens.end(), (int32_t) first);
        keep_highest(tokens, scores, budgets[t]);
        res.insert(res.end(), tokens.begin(), tokens.end());
    }
    return res;
}

size_t count_evs(const std::vector<patch_grid> & slices, double drop) {
    const auto sizes = sizes_of(slices);

    // the first frame has nothing to be compared with
    return std::max(sizes[0], count_of(std::min(1 - drop, 1 - 1e-9), sizes[0]*sizes.size()));
}

std::vector<int32_t> pick_evs(const visual_embeddings & in, double drop) {
    const int64_t n = in.n(), frame = n/in.slices.size();

    std::vector<double> change(n, 3.0); // 1 - cosine is at most 2
    std::vector<double> before(in.d);
    for (int64_t i = frame; i < n; ++i) {
        std::copy_n(in.values + (i - frame)*in.d, in.d, before.begin());
        change[i] = 1 - cosine(before.data(), in.values + i*in.d, in.d);
    }

    std::vector<int32_t> res(n);
    std::iota(res.begin(), res.end(), 0);
    keep_highest(res, change, count_evs(in.slices, drop));
    return res;
}

} // namespace pyfastv
