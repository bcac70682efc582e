// Reducers that keep some tokens as they are: stride, DivPrune, CDPruner.

#include "choose/reducers/methods.h"

#include "choose/greedy.h"
#include "choose/parts.h"
#include "products/parallel.h"
#include "products/products.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <memory>
#include <numeric>
#include <utility>

namespace pyfastv {

namespace {

// cosines of the tokens [first, first + n) of a part, F32 [n, n]
struct part_cosines {
    int32_t            first;
    size_t             n;
    std::vector<float> values;

    const float * row(size_t i) const { return values.data() + i*n; }
};

// part after part: the products use all threads
std::vector<part_cosines> cosines_in_parts(const visual_embeddings & in, ggml_backend_t backend) {
    const auto first = parts_of(in.n());

    std::vector<part_cosines> res;
    for (size_t p = 0; p + 1 < first.size(); ++p) {
        const size_t n = first[p + 1] - first[p];
        res.push_back({ (int32_t) first[p], n, std::vector<float>(n*n) });
        const auto write = [&](int64_t i, float * to) { std::copy_n(in.values + (first[p] + i)*in.d, in.d, to); };
        cosines(n, in.d, write, backend, res.back().values.data());
    }
    return res;
}

for_all on_threads_of(ggml_backend_t backend) {
    return [backend](size_t n, const std::function<void(size_t)> & f) { in_parallel(n, backend, f); };
}

// the token that is farthest from those taken
class divprune_part : public greedy_part {
public:
    explicit divprune_part(part_cosines cosines) : cosines(std::move(cosines)), nearest(this->cosines.n, -2.0f), taken(this->cosines.n, 0) {}

    step next() override {
        const size_t n = cosines.n;
        if (n_taken == n) {
            return {};
        }
        if (n_taken == 0) {
            for (size_t i = 0; i < n; ++i) {
                for (size_t j = 0; j < n; ++j) {
                    if (j != i) {
                        nearest[i] = std::max(nearest[i], cosines.row(i)[j]);
                    }
                }
            }
        }

        size_t best = std::find(taken.begin(), taken.end(), 0) - taken.begin();
        for (size_t i = best + 1; i < n; ++i) {
            if (!taken[i] && nearest[i] < nearest[best]) {
                best = i;
            }
        }
        taken[best] = 1;

        // the first of a part is as far from the other parts as can be, 2, whatever it is to its own
        const double gain = (n_taken == 0 ? 2.0 : 0.0) + 1.0 - nearest[best];

        const float * row = cosines.row(best);
        for (size_t i = 0; i < n; ++i) {
            nearest[i] = n_taken == 0 ? row[i] : std::max(nearest[i], row[i]);
        }
        n_taken++;

        return { gain, cosines.first + (int32_t) best };
    }

private:
    const part_cosines cosines;

    std::vector<float>   nearest; // [n] the largest cosine: to any other at first, then to those taken
    std::vector<uint8_t> taken;   // [n]
    size_t               n_taken = 0;
};

// the token that makes the determinant of the kernel largest
class cdpruner_part : public greedy_part {
public:
    // r: relevance of the tokens of the part, 0 to 1
    cdpruner_part(part_cosines cosines, const float * r) :
        cosines(std::move(cosines)), r(r), left(this->cosines.n), gain(left.size()), row(left.size()), taken(left.size(), 0) {
        std::iota(left.begin(), left.end(), 0);
        for (size_t i = 0; i < gain.size(); ++i) {
            gain[i] = r[i]*r[i]*this->cosines.row(i)[i];
        }
    }

    step next() override {
        // gains below this are rounding: the kernel has no more rank
        constexpr float least = 1e-6f;

        const size_t n = left.size();

        size_t best = std::find(taken.begin(), taken.end(), 0) - taken.begin();
        for (size_t i = best + 1; i < n; ++i) {
            if (!taken[i] && gain[i] > gain[best]) {
                best = i;
            }
        }
        if (best == n || gain[best] < least) {
            return {};
        }
        taken[best] = 1;

        const step res = { gain[best], cosines.first + left[best] };

        add_row(best);
        if (factor.size() % 64 == 0) {
            forget_taken();
        }
        return res;
    }

private:
    // row k of the factor, (L_best,i - sum_j c_j,best c_j,i)/c_best, and what it takes from the gains
    void add_row(size_t best) {
        const size_t  n       = left.size(), k = factor.size();
        const float * of_best = cosines.row(left[best]);
        for (size_t i = 0; i < n; ++i) {
            row[i] = r[left[best]]*r[left[i]]*of_best[left[i]];
        }
        size_t j = 0;
        for (; j + 4 <= k; j += 4) { // four at a time: the row goes through memory less often
            const float * c0 = factor[j].data(), * c1 = factor[j + 1].data(), * c2 = factor[j + 2].data(), * c3 = factor[j + 3].data();
            const float w0 = c0[best], w1 = c1[best], w2 = c2[best], w3 = c3[best];
            for (size_t i = 0; i < n; ++i) {
                row[i] -= w0*c0[i] + w1*c1[i] + w2*c2[i] + w3*c3[i];
            }
        }
        for (; j < k; ++j) {
            const float * c = factor[j].data();
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
        factor.push_back(row);
    }

    // nothing reads the columns of tokens that were taken
    void forget_taken() {
        const auto forget = [&](auto & values) {
            size_t n = 0;
            for (size_t i = 0; i < values.size(); ++i) {
                if (!taken[i]) {
                    values[n++] = values[i];
                }
            }
            values.resize(n);
        };
        for (auto & of_factor : factor) {
            forget(of_factor);
        }
        forget(left);
        forget(gain);
        row.resize(left.size());
        taken.assign(left.size(), 0);
    }

    const part_cosines cosines;
    const float      * r; // [tokens of the part]

    std::vector<int32_t> left;  // [n] tokens that were not taken, and the last that were
    std::vector<float>   gain;  // [n]
    std::vector<float>   row;   // [n]
    std::vector<uint8_t> taken; // [n]

    std::vector<std::vector<float>> factor; // [k, n] of Cholesky
};

} // namespace

std::vector<int32_t> pick_stride(int64_t n, size_t m) {
    std::vector<int32_t> res;
    for (size_t i = 0; i < m; ++i) {
        res.push_back((int32_t) ((2*i + 1)*n/(2*m))); // the middle of the i-th of m equal parts
    }
    return res;
}

std::vector<int32_t> pick_divprune(const visual_embeddings & in, size_t m, ggml_backend_t backend, const stop_fn & stopped) {
    std::vector<std::unique_ptr<greedy_part>> parts;
    for (auto & part : cosines_in_parts(in, backend)) {
        parts.push_back(std::make_unique<divprune_part>(std::move(part)));
    }
    auto res = greedy(parts, m, on_threads_of(backend), stopped);
    std::sort(res.begin(), res.end());
    return res;
}

std::vector<float> relevance_of(const visual_embeddings & in) {
    const double length = std::sqrt(dot(in.question, in.question, in.n_question));

    std::vector<float> res;
    for (int64_t i = 0; i < in.n(); ++i) {
        const float * row  = in.values + i*in.d;
        const double  norm = std::sqrt(dot(row, row, in.n_question))*length;
        res.push_back(norm > 0 ? (float) (dot(row, in.question, in.n_question)/norm) : 0.0f);
    }
    return res;
}

std::vector<int32_t> pick_cdpruner(const visual_embeddings & in, size_t m, ggml_backend_t backend, const stop_fn & stopped) {
    const auto relevance = relevance_of(in);

    const auto [low, high] = std::minmax_element(relevance.begin(), relevance.end());
    const float lowest = *low, range = *high - *low;

    std::vector<float> r(relevance.size(), 1.0f); // 0 to 1; all the same: 1
    for (size_t i = 0; i < r.size() && range > 0; ++i) {
        r[i] = (relevance[i] - lowest)/range;
    }

    std::vector<std::unique_ptr<greedy_part>> parts;
    for (auto & part : cosines_in_parts(in, backend)) {
        const float * r_of_part = r.data() + part.first;
        parts.push_back(std::make_unique<cdpruner_part>(std::move(part), r_of_part));
    }
    auto res = greedy(parts, m, on_threads_of(backend), stopped);
    std::sort(res.begin(), res.end());

    // what is left adds nothing that is not there: the most relevant
    std::vector<int32_t> all(relevance.size()), left;
    std::iota(all.begin(), all.end(), 0);
    std::set_difference(all.begin(), all.end(), res.begin(), res.end(), std::back_inserter(left));
    std::stable_sort(left.begin(), left.end(), [&](int32_t a, int32_t b) { return relevance[a] > relevance[b]; });

    res.insert(res.end(), left.begin(), left.begin() + (m - res.size()));
    std::sort(res.begin(), res.end());
    return res;
}

} // namespace pyfastv
