#include "reduce/methods.h"

#include <algorithm>
#include <cmath>
#include <numeric>

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
merging round(const merging & in, int64_t d, int64_t r, ggml_backend_t backend) {
    const int64_t n_even = (in.n() + 1)/2, n_odd = in.n()/2;

    const auto unit = unit_rows(in.values.data(), in.n(), d);

    std::vector<float> even, odd;
    for (int64_t i = 0; i < in.n(); ++i) {
        auto & side = i%2 ? odd : even;
        side.insert(side.end(), unit.begin() + i*d, unit.begin() + (i + 1)*d);
    }
    const auto cosines = row_products(even.data(), n_even, odd.data(), n_odd, d, backend); // [n_even, n_odd]

    std::vector<int64_t> partner(n_even), order(n_even);
    std::vector<float>   best(n_even);
    for (int64_t e = 0; e < n_even; ++e) {
        const float * row = cosines.data() + e*n_odd;
        partner[e] = std::max_element(row, row + n_odd) - row;
        best[e]    = row[partner[e]];
    }
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return best[a] > best[b]; });

    std::vector<int64_t> into(in.n()); // itself, or the token of odd rank that takes it up
    std::iota(into.begin(), into.end(), 0);
    for (int64_t k = 0; k < r; ++k) {
        into[2*order[k]] = 2*partner[order[k]] + 1;
    }

    struct group {
        std::vector<double> sum;
        int64_t heaviest; // in `in`
        int32_t size = 0;
        std::vector<int32_t> members;
    };
    std::vector<group> groups(in.n());
    for (int64_t i = 0; i < in.n(); ++i) {
        auto & to = groups[into[i]];
        if (to.size == 0) {
            to.sum.assign(d, 0);
            to.heaviest = i;
        }
        for (int64_t k = 0; k < d; ++k) {
            to.sum[k] += (double) in.values[i*d + k]*in.size[i];
        }
        to.heaviest = in.size[i] > in.size[to.heaviest] ? i : to.heaviest;
        to.size    += in.size[i];
        to.members.insert(to.members.end(), in.members[i].begin(), in.members[i].end());
    }

    std::vector<int64_t> alive;
    for (int64_t i = 0; i < in.n(); ++i) {
        if (groups[i].size > 0) {
            alive.push_back(i);
        }
    }
    std::sort(alive.begin(), alive.end(), [&](int64_t a, int64_t b) { return in.place[groups[a].heaviest] < in.place[groups[b].heaviest]; });

    merging res;
    res.values.reserve(alive.size()*d);
    for (const int64_t i : alive) {
        const auto & from = groups[i];
        for (int64_t k = 0; k < d; ++k) {
            res.values.push_back((float) (from.sum[k]/from.size));
        }
        res.size.push_back(from.size);
        res.place.push_back(in.place[from.heaviest]);
        res.members.push_back(from.members);
    }
    return res;
}

} // namespace

reduced_embeddings merge(const visual_embeddings & in, size_t m, bool scale, ggml_backend_t backend) {
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
        now = round(now, d, std::min(now.n() - (int64_t) m, now.n()/2), backend);
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
