#include "choose/reducers/methods.h"

#include "choose/parts.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

namespace pyfastv {
namespace {

// tokens on their way, in raster order of `place`
struct merging {
    std::vector<float>   values; // [n, d] means over their members
    std::vector<int32_t> size;   // [n]
    std::vector<int32_t> place;  // [n] the input where the heaviest member is
    std::vector<std::vector<int32_t>> members; // [n] inputs

    int64_t n() const { return (int64_t) size.size(); }
};

// merges r <= n/2 tokens of even rank into tokens of odd rank
merging round(const merging & in, int64_t d, int64_t r, ggml_backend_t backend, const stop_fn & stopped) {
    const int64_t n_even = (in.n() + 1)/2;

    std::vector<int64_t> partner(n_even), order(n_even); // partner: counted among those of odd rank
    std::vector<float>   best(n_even);

    const auto first = parts_of(in.n());
    for (size_t p = 0; p + 1 < first.size(); ++p) {
        if (stopped && stopped()) {
            throw aborted();
        }
        std::vector<float> even, odd;
        const auto unit = unit_rows(in.values.data() + first[p]*d, first[p + 1] - first[p], d);
        for (size_t i = first[p]; i < first[p + 1]; ++i) {
            auto & side = i%2 ? odd : even;
            const auto row = unit.begin() + (i - first[p])*d;
            side.insert(side.end(), row, row + d);
        }
        const int64_t n_even_here = even.size()/d, n_odd_here = odd.size()/d;
        const auto    cosines     = row_products(even.data(), n_even_here, odd.data(), n_odd_here, d, backend); // [even, odd]

        for (int64_t e = 0; e < n_even_here; ++e) {
            const float * row     = cosines.data() + e*n_odd_here;
            const float * highest = std::max_element(row, row + n_odd_here);
            partner[(first[p] + 1)/2 + e] = first[p]/2 + (highest - row);
            best   [(first[p] + 1)/2 + e] = *highest;
        }
    }
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return best[a] > best[b]; });

    std::vector<int64_t> into(in.n()); // itself, or the token of odd rank that takes it up
    std::iota(into.begin(), into.end(), 0);
    for (int64_t k = 0; k < r; ++k) {
        into[2*order[k]] = 2*partner[order[k]] + 1;
    }

    std::vector<std::vector<int64_t>> groups(in.n()); // what goes into each, ascending
    for (int64_t i = 0; i < in.n(); ++i) {
        groups[into[i]].push_back(i);
    }
    const auto heaviest_of = [&](int64_t i) {
        const auto lighter = [&](int64_t a, int64_t b) { return in.size[a] < in.size[b]; };
        return *std::max_element(groups[i].begin(), groups[i].end(), lighter); // of equal ones the first
    };

    std::vector<std::pair<int64_t, int64_t>> alive; // heaviest, group
    for (int64_t i = 0; i < in.n(); ++i) {
        if (!groups[i].empty()) {
            alive.emplace_back(heaviest_of(i), i);
        }
    }
    std::sort(alive.begin(), alive.end(), [&](const auto & a, const auto & b) { return in.place[a.first] < in.place[b.first]; });

    merging res;
    res.values.reserve(alive.size()*d);

    std::vector<double> sum(d);
    for (const auto & [heaviest, i] : alive) {
        std::fill(sum.begin(), sum.end(), 0.0);
        int32_t              size = 0;
        std::vector<int32_t> members;
        for (const int64_t from : groups[i]) {
            for (int64_t k = 0; k < d; ++k) {
                sum[k] += (double) in.values[from*d + k]*in.size[from];
            }
            size += in.size[from];
            members.insert(members.end(), in.members[from].begin(), in.members[from].end());
        }
        for (int64_t k = 0; k < d; ++k) {
            res.values.push_back((float) (sum[k]/size));
        }
        res.size.push_back(size);
        res.place.push_back(in.place[heaviest]);
        res.members.push_back(std::move(members));
    }
    return res;
}

} // namespace

reduced_embeddings merge(const visual_embeddings & in, size_t m, bool scale, ggml_backend_t backend, const stop_fn & stopped) {
    const int64_t n = in.n(), d = in.d;

    merging now;
    now.values.assign(in.values, in.values + n*d);
    now.size.assign(n, 1);
    now.place.resize(n);
    std::iota(now.place.begin(), now.place.end(), 0);
    for (int32_t i = 0; i < n; ++i) {
        now.members.push_back({ i });
    }

    while (now.n() > (int64_t) m) {
        now = round(now, d, std::min(now.n() - (int64_t) m, now.n()/2), backend, stopped);
    }

    reduced_embeddings res;
    res.place = now.place;
    res.member.assign(n, -1);
    res.slices.assign(in.slices.size(), { 0, 1 });
    for (int64_t o = 0; o < now.n(); ++o) {
        res.centre.push_back(centre_of(in.slices, now.place[o]));
        res.slices[(size_t) res.centre.back()[0]].nx++;
        for (const int32_t i : now.members[o]) {
            res.member[i] = (int32_t) o;
        }
        if (scale) {
            const auto factor = (float) (1 + std::log((double) now.size[o]));
            std::for_each_n(now.values.begin() + o*d, d, [&](float & value) { value *= factor; });
        }
    }
    res.values = std::move(now.values);
    return res;
}

} // namespace pyfastv
