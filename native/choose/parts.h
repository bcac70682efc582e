#pragma once

#include <cstddef>
#include <vector>

namespace pyfastv {

// Up to so many tokens are compared with each other, all with all. What n tokens cost grows with n*n, and their cosines
// take n*n*4 bytes: 36 MiB here.
constexpr size_t most_compared = 3072;

// More tokens are compared within parts of tokens that follow each other, as equal as can be and at most this large, so
// that time and memory grow with n. Tokens of different parts count as unlike.
constexpr size_t most_in_part = 1536;

// [parts + 1] where each part of n tokens begins; the last is n
inline std::vector<size_t> parts_of(size_t n) {
    const size_t n_parts = n == 0 ? 0 : n <= most_compared ? 1 : (n + most_in_part - 1)/most_in_part;

    std::vector<size_t> res;
    for (size_t p = 0; p < n_parts; ++p) {
        res.push_back(p*n/n_parts);
    }
    res.push_back(n);
    return res;
}

} // namespace pyfastv
