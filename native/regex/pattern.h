#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

// Regular expressions without recursion over the text: what llama.cpp's pre-tokenizers need of ECMAScript's syntax.
namespace pyfastv {

class char_set {
public:
    // ranges: [first, last], in any order; all others if `inverted`
    char_set(std::vector<std::pair<char32_t, char32_t>> ranges, bool inverted);

    bool has(char32_t c) const {
        return c < 256 ? low[c / 64] >> c % 64 & 1 : has_high(c);
    }

private:
    bool has_high(char32_t c) const;

    std::array<uint64_t, 4>                    low = {}; // a bit for each character below 256
    std::vector<std::pair<char32_t, char32_t>> ranges;   // sorted
    bool                                       inverted;
};

// A program: where to go on after each step. Every loop takes a character, so a run of it ends.
struct pattern {
    enum class step_kind {
        match,     // done
        take,      // one character of sets[other], then `next`
        split,     // `next`, and if that fails `other`
        ahead,     // `next`, if the steps from `other` match here
        not_ahead, // `next`, if they do not
        at_end,    // `next`, if the text ends here
    };

    struct step {
        step_kind kind;
        uint32_t  next;
        uint32_t  other;
        uint32_t  n_split; // of a split: which one it is
    };

    std::vector<step>     steps;
    std::vector<char_set> sets;
    uint32_t              first    = 0;
    uint32_t              n_splits = 0;
    bool                  splits_ahead = false; // there are splits in an `ahead` or a `not_ahead`
};

// Alternatives, (), (?:), (?=), (?!), [], $, escapes, and the greedy * + ? {n} {n,m}; classes as \s are those of ASCII.
// Nothing: the expression has something else, or a loop over what may be empty.
std::optional<pattern> parse_pattern(const std::u32string & expression);

} // namespace pyfastv
