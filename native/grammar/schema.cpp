#include "grammar/schema.h"

#include "json-schema-to-grammar.h"
#include "json.h"

std::string pyfastv::schema_to_gbnf(const std::string & schema) {
    return json_schema_to_grammar(common_json::parse(schema), true);
}
