#pragma once

#include <string>

namespace pyfastv {

// A grammar (GBNF) of what a JSON schema allows, by llama.cpp's converter. It recurses over the schema: who calls it bounds the
// depth and the length of the strings. Throws std::exception for what it cannot convert.
std::string schema_to_gbnf(const std::string & schema);

} // namespace pyfastv
