#include "choose/choose.h"

#include "choose/cover.h"
#include "settings/rules.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <numeric>

namespace pyfastv {

size_t count_kept(size_t n, float drop) {
    if (n == 0 || drop >= 1.0f) {
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

// ascending
static std::vector<int32_t> present_of(const picture_scores & picture) {
    std::vector<int32_t> present;
    for (size_t i = 0; i < picture.scores.size(); ++i) {
        if (picture.present[i]) {
            present.push_back((int32_t) i);
        }
    }
    return present;
}

// highest score first
static std::vector<int32_t> rank_by_score(const std::vector<float> & scores, std::vector<int32_t> tokens) {
    // NaN comes last: std::sort() needs an order
    const auto lower = [](float a, float b) { return std::isnan(a) ? !std::isnan(b) : a < b; };

    std::stable_sort(tokens.begin(), tokens.end(), [&](int32_t a, int32_t b) { return lower(scores[b], scores[a]); });
    return tokens;
}

namespace {

struct place {
    size_t slice;
    size_t x;
    size_t y;
};

} // namespace

// [n]
static std::vector<place> places_of(const picture_scores & picture) {
    const auto is_sane = [&] {
        auto left = (int64_t) picture.scores.size();
        for (const auto & grid : picture.grids) {
            if (grid.nx < 1 || grid.ny < 1 || (int64_t) grid.nx*grid.ny > left) {
                return false;
            }
            left -= (int64_t) grid.nx*grid.ny;
        }
        return left == 0;
    };

    const auto row   = patch_grid { (int32_t) picture.scores.size(), 1 };
    const auto grids = is_sane() ? picture.grids : std::vector<patch_grid> { row };

    std::vector<place> places;
    for (size_t slice = 0; slice < grids.size(); ++slice) {
        for (size_t y = 0; y < (size_t) grids[slice].ny; ++y) {
            for (size_t x = 0; x < (size_t) grids[slice].nx; ++x) {
                places.push_back({ slice, x, y });
            }
        }
    }
    return places;
}

// `ranked`, so ordered anew that every first part of it holds the same share of each window
static std::vector<int32_t> rank_by_window(const picture_scores & picture, std::vector<int32_t> ranked, size_t side) {
    const auto places = places_of(picture);

    std::map<std::array<size_t, 3>, size_t> ids;

    std::vector<size_t> window(places.size()), rank(places.size()), size; // [n], [n], [windows]
    for (const int32_t i : ranked) {
        const auto & [slice, x, y] = places[i];

        window[i] = ids.try_emplace({ slice, y/side, x/side }, size.size()).first->second;
        size.resize(ids.size());
        rank[i] = size[window[i]]++;
    }

    // (r + 0.5)/s of two tokens, without rounding
    std::stable_sort(ranked.begin(), ranked.end(), [&](int32_t a, int32_t b) {
        return (2*rank[a] + 1)*size[window[b]] < (2*rank[b] + 1)*size[window[a]];
    });
    return ranked;
}

// n_kept <= tokens.size() of them, evenly spaced
static std::vector<int32_t> spread(const std::vector<int32_t> & tokens, size_t n_kept) {
    std::vector<int32_t> kept(n_kept);
    for (size_t i = 0; i < n_kept; ++i) {
        kept[i] = tokens[(2*i + 1)*tokens.size()/(2*n_kept)];
    }
    return kept;
}

// The tokens at every stride-th column and row, highest score first, then the others of `ranked`. If there are more than
// n_kept of the first, n_kept of them.
static std::vector<int32_t> rank_by_grid(const picture_scores & picture, std::vector<int32_t> ranked, size_t stride, size_t n_kept) {
    const auto places = places_of(picture);

    const auto others = std::stable_partition(ranked.begin(), ranked.end(), [&](int32_t i) {
        return places[i].x % stride == stride/2 && places[i].y % stride == stride/2;
    });
    if ((size_t) (others - ranked.begin()) <= n_kept) {
        return ranked;
    }

    std::sort(ranked.begin(), others);
    return spread({ ranked.begin(), others }, n_kept);
}

// how many of the first tokens of `ranked` it takes to hold the share `mass` of the sum over all of it
static size_t count_mass(const std::vector<float> & scores, const std::vector<int32_t> & ranked, float mass) {
    const auto add = [&](double sum, int32_t i) { return sum + scores[i]; };

    const double goal = mass*std::accumulate(ranked.begin(), ranked.end(), 0.0, add);

    size_t n = 0;
    for (double sum = 0.0; n < ranked.size() && sum < goal; ++n) {
        sum = add(sum, ranked[n]);
    }
    return n;
}

std::vector<int32_t> choose(const picture_scores & picture, const pyfastv_cut & cut) {
    const auto present = present_of(picture);
    const auto ranked  = rank_by_score(picture.scores, present);

    size_t n_kept = std::min(count_kept(picture.scores.size(), cut.drop), present.size());
    auto   order  = ranked; // the first n_kept of it stay

    switch (pick_rule_of(cut).how) {
        case picks::top_k:   break;
        case picks::window:  order = rank_by_window(picture, ranked, (size_t) cut.pick_number); break;
        case picks::uniform: order = spread(present, n_kept); break;
        case picks::grid:    order = rank_by_grid(picture, ranked, (size_t) cut.pick_number, n_kept); break;
        case picks::mass:    n_kept = std::max(n_kept, count_mass(picture.scores, ranked, (float) cut.pick_number)); break;
        case picks::cover:
            if (!picture.similarity.empty()) {
                order = pick_cover(picture, present, n_kept);
            }
            break;
    }

    order.resize(n_kept);
    std::sort(order.begin(), order.end());

    return order;
}

std::vector<float> random_scores(size_t n, uint32_t seed) {
    std::vector<float> scores(n);

    // splitmix64 (Steele, Lea and Flood, OOPSLA 2014); the upper 24 bits, which a float holds exactly
    uint64_t state = seed;
    for (float & score : scores) {
        uint64_t z = state += 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30))*0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27))*0x94d049bb133111eb;
        z = z ^ (z >> 31);

        score = (float) (z >> 40)/(float) (1 << 24);
    }
    return scores;
}

} // namespace pyfastv
