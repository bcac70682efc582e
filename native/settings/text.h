#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

// What the languages of settings have in common. Numbers and names are ASCII, whatever the locale and the standard library.
namespace pyfastv {

std::string trim(const std::string & text);

// "off", in any case
bool is_off(const std::string & text);

std::string lower(std::string text);

// trimmed; at least one
std::vector<std::string> split(const std::string & text, char separator);

// All of `text` is such a number, or nothing: finite, with a point or an exponent; digits, maybe with a sign.
std::optional<double>  real_in (const std::string & text);
std::optional<int64_t> whole_in(const std::string & text);

// the shortest text that is read as the same number
std::string to_text(float value);
std::string to_text(double value);

// "key = "value" is not understood; expected"
std::invalid_argument not_understood(const std::string & key, const std::string & value, const std::string & expected);

double  parse_real (const std::string & key, const std::string & text);
// in [low, high]; `what` says what it is
int32_t parse_whole(const std::string & key, const std::string & text, int64_t low, int64_t high, const std::string & what);

// "key=value", or a flag, which has no "="
struct setting_field {
    std::string                text;
    std::string                key;
    std::optional<std::string> value;

    explicit setting_field(const std::string & text);

    bool is(const char * name)      const { return key == name && value; }
    bool is_flag(const char * name) const { return key == name && !value; }
};

// Fields separated by ",". Throws where a key comes twice.
std::vector<setting_field> fields_of(const std::string & text);

} // namespace pyfastv
