#include "choose/predict.h"

#include <algorithm>

namespace pyfastv {
namespace {

// values that are compared before it is asked whether to go on: the loop over them is one of vectors
constexpr size_t part = 256;

// The largest difference; of those above `limit` any.
int32_t difference(const uint8_t * a, const uint8_t * b, size_t n, int32_t limit) {
    if (a == b) {
        return 0;
    }
    uint8_t res = 0;
    for (size_t first = 0; first < n && res <= limit; first += part) {
        const size_t end = std::min(n, first + part);
        for (size_t i = first; i < end; ++i) {
            res = std::max(res, (uint8_t) (std::max(a[i], b[i]) - std::min(a[i], b[i])));
        }
    }
    return res;
}

} // namespace

std::vector<int32_t> predict_units(const uint8_t * units, int32_t nx, int32_t ny, size_t n_values, int32_t tau) {
    std::vector<int32_t> res((size_t) nx*ny);

    const auto differ = [&](int32_t i, int32_t j, int32_t limit) {
        return difference(units + i*n_values, units + j*n_values, n_values, limit);
    };
    // what a decoder would have there: the unit's own values, or those of the one that stands for it
    const auto prediction = [&](int32_t i) {
        if (i < nx) {
            return res[i - 1];
        }
        if (i % nx == 0) {
            return res[i - nx];
        }
        const int32_t left = res[i - 1], upper = res[i - nx], corner = res[i - nx - 1];
        if (left == upper) {
            return left;
        }
        return differ(left, corner, UINT8_MAX) <= differ(upper, corner, UINT8_MAX) ? upper : left;
    };

    for (int32_t i = 0; i < (int32_t) res.size(); ++i) {
        res[i] = i;
        if (i > 0) {
            const int32_t by = prediction(i);
            res[i] = differ(i, by, tau) <= tau ? by : i;
        }
    }
    return res;
}

std::vector<int32_t> units_left(const std::vector<int32_t> & stands_for) {
    std::vector<int32_t> res;
    for (int32_t i = 0; i < (int32_t) stands_for.size(); ++i) {
        if (stands_for[i] == i) {
            res.push_back(i);
        }
    }
    return res;
}

} // namespace pyfastv
