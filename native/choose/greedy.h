#pragma once

#include "products/parallel.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <vector>

// Greedy choices among tokens that fall into parts (choose/parts.h): what is taken in one part changes no gain in another.
namespace pyfastv {

// f(i) for every i in [0, n), one after another or side by side
using for_all = std::function<void(size_t n, const std::function<void(size_t)> & f)>;

void one_by_one(size_t n, const std::function<void(size_t)> & f);

// One part: takes one token after another, always the one that gains most in it.
class greedy_part {
public:
    struct step {
        static constexpr int32_t none = -1;

        double  gain  = -std::numeric_limits<double>::infinity();
        int32_t token = none; // none: no other gains anything
    };

    virtual ~greedy_part() = default;

    virtual step next() = 0;
};

// The first m steps over all parts: always that of the part whose next token gains most, of equal ones the earlier part.
// Fewer, if no other token gains anything. Throws aborted if `stopped` says so, which is asked by those that run() has work.
std::vector<int32_t> greedy(const std::vector<std::unique_ptr<greedy_part>> & parts, size_t m, const for_all & run,
        const stop_fn & stopped = {});

} // namespace pyfastv
