#pragma once

#include "regex/pattern.h"

#include <utility>

namespace pyfastv {

// Finds a pattern in one text: leftmost, of alternatives the first that matches, greedy, with backtracking: ECMAScript's
// rules. Where the rest of the text was seen not to match is remembered, so that all searches in a text together take
// time and memory in proportion to its length, whatever it holds; nothing recurses over the text.
// The pattern and the text must outlive it. Searches go forward: never from before the end of the last match.
class matcher {
public:
    matcher(const pattern & what, const char32_t * text, size_t n);

    // [first, last) of the first match that begins at or behind `at`
    std::optional<std::pair<size_t, size_t>> search(size_t at);

    // the end of the match that begins at `at`
    std::optional<size_t> match(size_t at, bool may_be_empty = true);

private:
    struct branch {
        uint32_t step;
        size_t   at;
        size_t   n_path; // length of `path` when it was left open
    };

    // where the steps from `step` end; `ahead`: of an `ahead`
    std::optional<size_t> run(uint32_t step, size_t at, bool may_be_empty, bool ahead);

    size_t bit(uint32_t split, size_t at) const { return at*n_row + split; }

    const pattern &  what;
    const char32_t * text;
    size_t           n;
    size_t           n_row; // bits for one place of the text: a whole number of words

    std::vector<uint64_t> visited;   // [n + 1, n_row] bits: this split was tried here
    std::vector<uint64_t> succeeded; // [n + 1, n_row] bits: and, of an `ahead`, matches
    std::vector<branch>   open;      // to be tried when the present one fails, the last first
    std::vector<size_t>   path;      // bits of the splits on the way here, of an `ahead`
};

} // namespace pyfastv
