// Reducers that keep some tokens as they are: stride, DivPrune, CDPruner.

#include "reduce/methods.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace pyfastv {

std::vector<int32_t> pick_stride(int64_t n, size_t m) {
    std::vector<int32_t> res;
    for (size_t i = 0; i < m; ++i) {
        res.push_back((int32_t) ((2*i + 1)*n/(2*m))); // the middle of the i-th of m equal parts
    }
    return res;
}

std::vector<int32_t> pick_divprune(const std::vector<float> & cosines, int64_t n, size_t m) {
    std::vector<uint8_t> taken(n, 0);
    std::vector<float>   nearest(n, -2.0f); // the largest cosine: to any other at first, then to those taken

    for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < n; ++j) {
            if (j != i) {
                nearest[i] = std::max(nearest[i], cosines[i*n + j]);
            }
        }
    }

    for (size_t k = 0; k < m; ++k) {
        int64_t best = std::find(taken.begin(), taken.end(), 0) - taken.begin();
        for (int64_t i = best + 1; i < n; ++i) {
            if (!taken[i] && nearest[i] < nearest[best]) {
                best = i;
            }
        }
        taken[best] = 1;

        const float * row = cosines.data() + best*n;
        for (int64_t i = 0; i < n; ++i) {
            nearest[i] = k == 0 ? row[i] : std::max(nearest[i], row[i]);
        }
    }

    std::vector<int32_t> res;
    for (int64_t i = 0; i < n; ++i) {
        if (taken[i]) {
            res.push_back((int32_t) i);
        }
    }
    return res;
}

std::vector<float> relevance_of(const visual_embeddings & in) {
    const auto dot = [&](const float * a, const float * b) {
        double sum = 0;
        for (int64_t k = 0; k < in.n_question; ++k) {
            sum += (double) a[k]*b[k];
        }
        return sum;
    };
    const double length = std::sqrt(dot(in.question, in.question));

    std::vector<float> res;
    for (int64_t i = 0; i < in.n(); ++i) {
        const float * row  = in.values + i*in.d;
        const double  norm = std::sqrt(dot(row, row))*length;
        res.push_back(norm > 0 ? (float) (dot(row, in.question)/norm) : 0.0f);
    }
    return res;
}

std::vector<int32_t> pick_cdpruner(const std::vector<float> & cosines, const std::vector<float> & relevance, size_t m) {
    const size_t n = relevance.size();

    // gains below this are rounding: the kernel has no more rank
    constexpr float least = 1e-6f;

    const auto [low, high] = std::minmax_element(relevance.begin(), relevance.end());
    const float range = *high - *low;

    std::vector<float> r(n, 1.0f); // 0 to 1; all the same: 1
    for (size_t i = 0; i < n && range > 0; ++i) {
        r[i] = (relevance[i] - *low)/range;
    }

    // `left`: tokens that were not taken, with their columns of the Cholesky factor side by side: factor[k*n + at]
    std::vector<int32_t> left(n);
    std::iota(left.begin(), left.end(), 0);

    std::vector<float> gain(n), factor, row(n);
    for (size_t i = 0; i < n; ++i) {
        gain[i] = r[i]*r[i]*cosines[i*n + i];
    }
    factor.reserve(m*n);

    std::vector<uint8_t> taken(n, 0);
    for (size_t k = 0; k < m; ++k) {
        size_t best = std::find(taken.begin(), taken.end(), 0) - taken.begin();
        for (size_t i = best + 1; i < n; ++i) {
            if (!taken[i] && gain[i] > gain[best]) {
                best = i;
            }
        }
        if (gain[best] < least) {
            // what is left adds nothing that is not there: the most relevant
            std::stable_sort(left.begin(), left.end(), [&](int32_t a, int32_t b) { return relevance[a] > relevance[b]; });
            for (size_t i = 0; i < left.size() && k < m; ++i) {
                k += !taken[left[i]];
                taken[left[i]] = 1;
            }
            break;
        }
        taken[best] = 1;

        // row k of the factor: (L_best,i - sum_j c_j,best c_j,i)/c_best
        const float * cosine = cosines.data() + best*n;
        for (size_t i = 0; i < n; ++i) {
            row[i] = r[best]*r[i]*cosine[i];
        }
        size_t j = 0;
        for (; j + 4 <= k; j += 4) { // four at a time: the row goes through memory less often
            const float * c0 = factor.data() + j*n, * c1 = c0 + n, * c2 = c1 + n, * c3 = c2 + n;
            const float w0 = c0[best], w1 = c1[best], w2 = c2[best], w3 = c3[best];
            for (size_t i = 0; i < n; ++i) {
                row[i] -= w0*c0[i] + w1*c1[i] + w2*c2[i] + w3*c3[i];
            }
        }
        for (; j < k; ++j) {
            const float * c = factor.data() + j*n;
            const float   w = c[best];
            for (size_t i = 0; i < n; ++i) {
                row[i] -= w*c[i];
            }
        }
        const float scale = 1.0f/std::sqrt(gain[best]);
        for (size_t i = 0; i < n; ++i) {
            row[i]  *= scale;
            gain[i] -= row[i]*row[i];
        }
        factor.insert(factor.end(), row.begin(), row.end());
    }

    std::vector<int32_t> res;
    for (size_t i = 0; i < n; ++i) {
        if (taken[i]) {
            res.push_back((int32_t) i);
        }
    }
    return res;
}

} // namespace pyfastv
