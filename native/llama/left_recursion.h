#pragma once

#include "llama-grammar.h"

namespace pyfastv {

// True if a rule can lead to itself before a character is read. Takes time in proportion to the grammar, and recurses
// into nothing: grammars come with requests.
bool is_left_recursive(const llama_grammar_rules & rules);

} // namespace pyfastv
