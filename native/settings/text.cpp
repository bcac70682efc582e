#include "settings/text.h"

#include <cmath>
#include <limits>
#include <locale>
#include <set>
#include <sstream>

namespace pyfastv {

std::string trim(const std::string & text) {
    const char * space = " \t\r\n";
    const auto   begin = text.find_first_not_of(space);

    return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(space) - begin + 1);
}

std::string lower(std::string text) {
    for (char & c : text) {
        c = c >= 'A' && c <= 'Z' ? (char) (c - 'A' + 'a') : c;
    }
    return text;
}

bool is_off(const std::string & text) { return lower(trim(text)) == "off"; }

std::vector<std::string> split(const std::string & text, char separator) {
    std::vector<std::string> items;
    for (size_t begin = 0, end = 0; end != std::string::npos; begin = end + 1) {
        end = text.find(separator, begin);
        items.push_back(trim(text.substr(begin, end == std::string::npos ? end : end - begin)));
    }
    return items;
}

// All of `text`, made of `alphabet` (standard libraries differ in what else they take: "0x10", "inf").
template <typename T>
static std::optional<T> number_in(const std::string & text, const char * alphabet) {
    std::istringstream stream(text);
    stream.imbue(std::locale::classic());

    T value;
    if (text.find_first_not_of(alphabet) == std::string::npos && stream >> value && stream.eof()) {
        return value;
    }
    return {};
}

std::optional<double>  real_in (const std::string & text) { return number_in<double> (text, "0123456789.+-eE"); }
std::optional<int64_t> whole_in(const std::string & text) { return number_in<int64_t>(text, "0123456789+-"); }

// the shortest text that is read as the same number
template <typename T>
static std::string shortest(T value) {
    std::string res;
    for (int digits = 1; digits <= std::numeric_limits<T>::max_digits10; ++digits) {
        std::ostringstream stream;
        stream.imbue(std::locale::classic());
        stream.precision(digits);
        stream << value;

        const auto text  = stream.str();
        const auto again = real_in(text);
        if (again && (T) *again == value && (res.empty() || text.size() < res.size())) {
            res = text;
        }
    }
    return res.empty() ? std::to_string(value) : res; // no finite number
}

std::string to_text(float value)  { return shortest(value); }
std::string to_text(double value) { return shortest(value); }

std::invalid_argument not_understood(const std::string & key, const std::string & value, const std::string & expected) {
    return std::invalid_argument(key + " = \"" + value + "\" is not understood; " + expected);
}

double parse_real(const std::string & key, const std::string & text) {
    const auto value = real_in(text);
    if (!value) {
        throw not_understood(key, text, "a number, as 0.5");
    }
    return *value;
}

int32_t parse_whole(const std::string & key, const std::string & text, int64_t low, int64_t high, const std::string & what) {
    const auto value = whole_in(text);
    if (!value || *value < low || *value > high) {
        throw not_understood(key, text, what);
    }
    return (int32_t) *value;
}

setting_field::setting_field(const std::string & text) : text(text) {
    const auto equals = text.find('=');

    key = trim(text.substr(0, equals));
    if (equals != std::string::npos) {
        value = trim(text.substr(equals + 1));
    }
}

std::vector<setting_field> fields_of(const std::string & text) {
    std::vector<setting_field> res;
    std::set<std::string>      seen;
    for (const auto & item : split(text, ',')) {
        res.emplace_back(item);
        if (!seen.insert(res.back().key).second) {
            throw std::invalid_argument("\"" + item + "\": " + res.back().key + " is given twice");
        }
    }
    return res;
}

} // namespace pyfastv
