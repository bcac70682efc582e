// The functions of llama.cpp's common library that its JSON schema converter calls: all else of that library is not built.

#include "common.h"

#include <string>
#include <vector>

std::string string_join(const std::vector<std::string> & values, const std::string & separator) {
    std::string res;
    for (const auto & value : values) {
        res += (&value == values.data() ? "" : separator) + value;
    }
    return res;
}

std::vector<std::string> string_split(const std::string & text, const std::string & delimiter) {
    std::vector<std::string> res(1);
    for (size_t begin = 0; ; ) {
        const size_t end = text.find(delimiter, begin);
        res.back() = text.substr(begin, end - begin);
        if (end == std::string::npos) {
            return res;
        }
        res.emplace_back();
        begin = end + delimiter.size();
    }
}

std::string string_repeat(const std::string & text, size_t n) {
    std::string res;
    for (size_t i = 0; i < n; ++i) {
        res += text;
    }
    return res;
}
