#include "choose/cover.h"

#include "choose/greedy.h"

#include <algorithm>
#include <array>
#include <memory>
#include <numeric>

namespace pyfastv {
namespace {

// of the tokens of one part, counted from its first
class cover_part : public greedy_part {
public:
    // token: the first; weight: of each
    cover_part(const similar_part & part, const int32_t * token, const float * weight) :
        n(part.n), similarity(part.cosines), token(token), weight(weight), covered(n, -1.0f) {}

    step next() override {
        if (n_taken == 0) {
            for (size_t j = 0; j < n; ++j) {
                heap.push_back({ gain_of(j), j, 0 });
            }
            std::make_heap(heap.begin(), heap.end(), lower);
        }
        if (heap.empty()) {
            return {};
        }
        // A gain only falls as the set grows, so one computed earlier is an upper bound; the heap holds the highest first.
        for (;;) {
            std::pop_heap(heap.begin(), heap.end(), lower);
            auto & best = heap.back();
            if (best.round == n_taken) {
                break;
            }
            best.gain  = gain_of(best.token);
            best.round = n_taken;
            std::push_heap(heap.begin(), heap.end(), lower);
        }
        const auto best = heap.back();
        heap.pop_back();

        const float * row = similarity + best.token*n;
        for (size_t i = 0; i < n; ++i) {
            covered[i] = std::max(covered[i], row[i]);
        }
        n_taken++;

        return { best.gain, token[best.token] };
    }

private:
    struct bound {
        double gain;
        size_t token;
        size_t round; // in which it was computed
    };

    static bool lower(const bound & a, const bound & b) { return a.gain != b.gain ? a.gain < b.gain : a.token > b.token; }

    // twice sum_i weight_i*(what j would add to the cover of i); in parts, which the compiler may keep in vectors
    double gain_of(size_t j) const {
        const float * row = similarity + j*n;

        double gain = 0.0;
        for (size_t i0 = 0; i0 < n; i0 += 64) {
            std::array<float, 8> sums = {};

            const size_t i1 = std::min(i0 + 64, n);
            size_t i = i0;
            for (; i + sums.size() <= i1; i += sums.size()) {
                for (size_t k = 0; k < sums.size(); ++k) {
                    sums[k] += weight[i + k]*std::max(0.0f, row[i + k] - covered[i + k]);
                }
            }
            for (; i < i1; ++i) {
                sums[0] += weight[i]*std::max(0.0f, row[i] - covered[i]);
            }
            gain += std::accumulate(sums.begin(), sums.end(), 0.0);
        }
        return gain;
    }

    const size_t    n;
    const float   * similarity; // [n, n]
    const int32_t * token;      // [n]
    const float   * weight;     // [n]

    std::vector<float> covered; // [n] similarity to the most similar one in the set
    std::vector<bound> heap;
    size_t             n_taken = 0;
};

} // namespace

std::vector<int32_t> pick_cover(const picture_scores & picture, const std::vector<int32_t> & present, size_t n_kept) {
    std::vector<float> weight(present.size());
    std::transform(present.begin(), present.end(), weight.begin(), [&](int32_t i) { return std::max(0.0f, picture.scores[i]); });
    if (std::all_of(weight.begin(), weight.end(), [](float w) { return w == 0.0f; })) {
        weight.assign(weight.size(), 1.0f);
    }

    std::vector<std::unique_ptr<greedy_part>> parts;
    size_t first = 0;
    for (const auto & part : picture.similarity) {
        parts.push_back(std::make_unique<cover_part>(part, present.data() + first, weight.data() + first));
        first += part.n;
    }
    return greedy(parts, n_kept, picture.run, picture.stopped);
}

} // namespace pyfastv
