// what holds for the numbers in a file, whatever it is

#include "files/header.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>

namespace pyfastv {

std::string value_text(double value) {
    char text[32];
    snprintf(text, sizeof(text), "%.7g", value);
    return text;
}

namespace {

// The numbers of a tensor, some rows at a time; stops when f says so.
template <typename F> void for_rows(std::ifstream & file, const header_tensor & tensor, F && f) {
    const auto * traits = ggml_get_type_traits(tensor.type);
    if (tensor.type != GGML_TYPE_F32 && !traits->to_float) {
        return;
    }
    const size_t row_size = ggml_row_size(tensor.type, tensor.ne[0]);
    const size_t n_rows   = tensor.n_bytes/row_size;
    std::vector<char>  raw(row_size);
    std::vector<float> row(tensor.ne[0]);
    file.clear();
    file.seekg((std::streamoff) tensor.offset);
    for (size_t i = 0; i < n_rows; ++i) {
        file.read(raw.data(), (std::streamsize) raw.size());
        if (tensor.type == GGML_TYPE_F32) {
            memcpy(row.data(), raw.data(), raw.size());
        } else {
            traits->to_float(raw.data(), row.data(), tensor.ne[0]);
        }
        if (!file || !f(row)) {
            return;
        }
    }
}

bool all_finite(const std::vector<float> & row) {
    return std::all_of(row.begin(), row.end(), [](float value) { return std::isfinite(value); });
}

} // namespace

void check_finite(const file_header & header, const std::string & prefix) {
    for (const auto & [name, value] : header.keys) {
        if (!value.finite && name.rfind(prefix, 0) == 0) {
            refuse("key " + name + (value.is_array ? " has NaN among its numbers" : " is " + value_text(value.numbers[0]) + ", not a finite number"));
        }
    }
}

void check_range(const file_header & header, const std::string & name, double low, double high, const char * limit) {
    const auto * value = header.key(name);
    if (!value) {
        return;
    }
    for (const double number : value->numbers) {
        if (!(number >= low && number <= high)) {
            refuse("key " + name + " is " + value_text(number) + ", not " + value_text(low) + " to " + value_text(high) +
                    (limit && number > high ? " (PYFASTV_LIMITS=" + std::string(limit) + "=... allows more)" : ""));
        }
    }
}

void check_beginnings(const std::string & path, const file_header & header) {
    constexpr size_t max_numbers = 1 << 16;   // of a tensor; all of a vector
    constexpr float  largest     = 1e30f;     // what rope_freqs.weight has where nothing is rotated; its square is infinite

    std::ifstream file(path, std::ios::binary);
    for (const auto & [name, tensor] : header.tensors) {
        size_t n = 0;
        for_rows(file, tensor, [&, &name = name](const std::vector<float> & row) {
            if (!std::all_of(row.begin(), row.end(), [](float value) { return std::fabs(value) <= largest; })) {
                refuse("tensor " + name + " has values that are not finite, or no weights: the file is damaged");
            }
            n += row.size();
            return n < max_numbers;
        });
    }
}

suspect find_suspect(const std::string & path, const file_header & header) {
    std::ifstream file(path, std::ios::binary);

    suspect res;
    for (const auto & [name, tensor] : header.tensors) {
        bool finite = true;
        for_rows(file, tensor, [&, &name = name](const std::vector<float> & row) {
            finite = all_finite(row);
            for (const float value : row) {
                if (finite && std::fabs(value) > res.largest) {
                    res = { name, std::fabs(value) };
                }
            }
            return finite;
        });
        if (!finite) {
            return { name, std::numeric_limits<float>::infinity() };
        }
    }
    return res;
}

bool is_weight_type(ggml_type type) {
    // the last two are types of the other side of a product
    return type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16 ||
        (ggml_is_quantized(type) && type != GGML_TYPE_Q8_1 && type != GGML_TYPE_Q8_K);
}

bool is_utf8(const std::string & text) {
    for (size_t i = 0; i < text.size(); ) {
        const auto   first = (unsigned char) text[i];
        const size_t n     = first < 0x80 ? 1 : first >= 0xf0 && first < 0xf5 ? 4 : first >= 0xe0 && first < 0xf0 ? 3 : first >= 0xc2 && first < 0xe0 ? 2 : 0;
        if (n == 0 || i + n > text.size()) {
            return false;
        }
        uint32_t code = n == 1 ? first : first & (0xff >> (n + 1));
        for (size_t k = 1; k < n; ++k) {
            const auto next = (unsigned char) text[i + k];
            if ((next & 0xc0) != 0x80) {
                return false;
            }
            code = code << 6 | (next & 0x3f);
        }
        // longer than needed, a surrogate, or beyond Unicode
        if ((n == 3 && code < 0x800) || (n == 4 && (code < 0x10000 || code > 0x10ffff)) || (code >= 0xd800 && code < 0xe000)) {
            return false;
        }
        i += n;
    }
    return true;
}

} // namespace pyfastv
