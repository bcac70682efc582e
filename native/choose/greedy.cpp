#include "choose/greedy.h"

#include "products/products.h"

#include <algorithm>

namespace pyfastv {

void one_by_one(size_t n, const std::function<void(size_t)> & f) {
    for (size_t i = 0; i < n; ++i) {
        f(i);
    }
}

std::vector<int32_t> greedy(const std::vector<std::unique_ptr<greedy_part>> & parts, size_t m, const for_all & run,
        const stop_fn & stopped) {
    using step = greedy_part::step;

    std::vector<std::vector<step>> steps(parts.size()); // of every part, those that are known
    std::vector<size_t>            taken(parts.size(), 0);

    std::vector<int32_t> res;
    while (res.size() < m && !parts.empty()) {
        // a part goes ahead by its share of what is to be taken, so that parts can work side by side
        const size_t ahead = (m - res.size() + parts.size() - 1)/parts.size();

        std::vector<size_t> used_up;
        for (size_t p = 0; p < parts.size(); ++p) {
            if (taken[p] == steps[p].size()) {
                used_up.push_back(p);
            }
        }
        run(used_up.size(), [&](size_t i) {
            auto & of_part = steps[used_up[i]];
            for (size_t k = 0; k < ahead && (of_part.empty() || of_part.back().token != step::none); ++k) {
                if (stopped && stopped()) {
                    throw aborted();
                }
                of_part.push_back(parts[used_up[i]]->next());
            }
        });

        const auto is_known = [&](size_t p) { return taken[p] < steps[p].size(); };

        while (res.size() < m) {
            size_t best  = 0;
            bool   known = true;
            for (size_t p = 0; p < parts.size() && known; ++p) {
                known = is_known(p);
                best  = known && steps[p][taken[p]].gain > steps[best][taken[best]].gain ? p : best;
            }
            if (!known) {
                break;
            }
            const auto & next = steps[best][taken[best]];
            if (next.token == step::none) {
                return res;
            }
            res.push_back(next.token);
            taken[best]++;
        }
    }
    return res;
}

} // namespace pyfastv
