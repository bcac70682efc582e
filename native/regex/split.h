#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace pyfastv {

// Splits pieces of a text at the matches of an expression: the lengths of all matches and of what lies between, in order,
// which are those that std::regex finds with ECMAScript's syntax, but without its recursion over the text.
// `lengths`: of the pieces, which sum to the text's. False: the expression has something that parse_pattern does not take.
template <typename Char>
bool regex_split(const std::basic_string<Char> & text, const std::basic_string<Char> & expression, const std::vector<size_t> & lengths,
        std::vector<size_t> & result);

} // namespace pyfastv
