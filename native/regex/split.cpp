#include "regex/split.h"

#include "regex/matcher.h"

#include <type_traits>

namespace pyfastv {
namespace {

template <typename Char>
std::u32string widen(const std::basic_string<Char> & text) {
    std::u32string res;
    res.reserve(text.size());
    for (const Char c : text) {
        res.push_back(static_cast<std::make_unsigned_t<Char>>(c));
    }
    return res;
}

void split_piece(const pattern & what, const char32_t * text, size_t n, std::vector<size_t> & result) {
    matcher matcher(what, text, n);

    size_t end   = 0;
    auto   found = matcher.search(0);
    while (found) {
        const auto [first, last] = *found;
        if (first > end) {
            result.push_back(first - end);
        }
        result.push_back(last - first);
        end = last;
        if (first < last) {
            found = matcher.search(end);
            continue;
        }
        // behind an empty match: one here that is not empty, or one further on
        if (end == n) {
            break;
        }
        const auto longer = matcher.match(end, false);
        found = longer ? std::make_pair(end, *longer) : matcher.search(end + 1);
    }
    if (end < n) {
        result.push_back(n - end);
    }
}

} // namespace

template <typename Char>
bool regex_split(const std::basic_string<Char> & text, const std::basic_string<Char> & expression, const std::vector<size_t> & lengths,
        std::vector<size_t> & result) {
    const auto what = parse_pattern(widen(expression));
    if (!what) {
        return false;
    }
    const auto wide = widen(text);

    size_t begin = 0;
    for (const size_t n : lengths) {
        split_piece(*what, wide.data() + begin, n, result);
        begin += n;
    }
    return true;
}

template bool regex_split(const std::string  &, const std::string  &, const std::vector<size_t> &, std::vector<size_t> &);
template bool regex_split(const std::wstring &, const std::wstring &, const std::vector<size_t> &, std::vector<size_t> &);

} // namespace pyfastv
