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

} // namespace pyfastv
