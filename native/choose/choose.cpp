#include "choose/choose.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace pyfastv {

size_t count_kept(size_t n, float drop) {
    if (n == 0) {
        return 0;
    }

    // Round at 1e-6 first: a drop of 0.9f is not 9/10, and n*(1 - drop) must not miss a half because of that.
    const double share = std::round((1.0 - (double) drop) * 1e6) / 1e6;
    const double exact = std::round((double) n * share * 1e6) / 1e6;
    const double floor = std::floor(exact);
    const double frac  = exact - floor;

    auto kept = (size_t) floor;
    if (frac > 0.5 || (frac == 0.5 && kept % 2 == 1)) {
        kept++;
    }

    return std::clamp<size_t>(kept, 1, n);
}

std::vector<int32_t> choose_top_k(const float * scores, size_t n, float drop) {
    std::vector<int32_t> order(n);
    std::iota(order.begin(), order.end(), 0);

    const size_t n_kept = count_kept(n, drop);

    std::partial_sort(order.begin(), order.begin() + n_kept, order.end(), [&](int32_t a, int32_t b) {
        return scores[a] != scores[b] ? scores[a] > scores[b] : a < b;
    });

    order.resize(n_kept);
    std::sort(order.begin(), order.end());

    return order;
}

std::vector<int32_t> choose_window(const float * scores, size_t n, float drop, int32_t window) {
    const auto   root = (size_t) std::lround(std::sqrt((double) n));
    const size_t nx   = root*root == n ? root : n;
    const size_t side = window;

    const size_t windows_x = (nx + side - 1)/side;
    const auto   window_of = [&](size_t i) { return i/nx/side*windows_x + i%nx/side; };

    const auto higher = [&](int32_t a, int32_t b) {
        return scores[a] != scores[b] ? scores[a] > scores[b] : a < b;
    };

    std::vector<int32_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), higher);

    std::vector<size_t> rank(n), size(n, 0); // size: of windows, which are no more than tokens
    for (const int32_t i : order) {
        rank[i] = size[window_of(i)]++;
    }

    // (r + 0.5)/s of two tokens, without rounding
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
        return (2*rank[a] + 1)*size[window_of(b)] < (2*rank[b] + 1)*size[window_of(a)];
    });

    order.resize(count_kept(n, drop));
    std::sort(order.begin(), order.end());

    return order;
}

std::vector<int32_t> choose_uniform(size_t n, float drop) {
    std::vector<int32_t> kept(count_kept(n, drop));

    for (size_t i = 0; i < kept.size(); ++i) {
        kept[i] = (int32_t) ((2*i + 1)*n/(2*kept.size()));
    }

    return kept;
}

std::vector<int32_t> choose(const float * scores, size_t n, float drop, pyfastv_pick pick, int32_t window) {
    switch (pick) {
        case PYFASTV_PICK_WINDOW:  return choose_window(scores, n, drop, window);
        case PYFASTV_PICK_UNIFORM: return choose_uniform(n, drop);
        case PYFASTV_PICK_TOP_K:   break;
    }
    return choose_top_k(scores, n, drop);
}

} // namespace pyfastv
