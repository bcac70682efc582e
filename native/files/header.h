#pragma once

#include "files/limits.h"

#include "ggml.h"
#include "gguf.h"

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace pyfastv {

struct header_value {
    gguf_type   type     = GGUF_TYPE_UINT32; // of an array that of its elements
    bool        is_array = false;
    uint64_t    n        = 1;                // elements
    std::string text;                        // of a string outside of an array
    std::vector<double> numbers;             // the first ones, as many as max_numbers; none of strings
    bool        finite = true;               // for an array: no NaN (Gemma 3n has infinities in one); of all its elements

    static constexpr size_t max_numbers = 4096;
};

struct header_tensor {
    std::array<int64_t, 4> ne;     // rows first, as ggml has it
    int                    n_dims; // without ones at the end, at least 1
    ggml_type              type;
    uint64_t               offset; // in the file
    uint64_t               n_bytes;
};

// A GGUF file's header, read without trust: no memory is taken for what the file merely claims.
struct file_header {
    std::map<std::string, header_value>  keys;
    std::map<std::string, header_tensor> tensors;

    const header_value *  key(const std::string & name) const;
    const header_tensor * tensor(const std::string & name) const;

    // Throws std::runtime_error, which names the key or the tensor, for a file that ends in its header or before its
    // tensors do, says something twice, or claims more than the limits. A file that is no GGUF, or of another version
    // or byte order, has an empty header: llama.cpp says what it is.
    static file_header read(const std::string & path, const file_limits & limits);
};

std::string shape_text(const header_tensor & tensor);
std::string value_text(double value); // of a number in a file, whatever it is

// throws std::runtime_error
[[noreturn]] void refuse(const std::string & reason);

// Refuse a file in which
// a number of a key that begins with `prefix` is not finite, or in an array NaN,
void check_finite(const file_header & header, const std::string & prefix);
// a number of this key, if it is there, is out of a range; `limit`: the field of file_limits that is its upper end,
void check_range(const file_header & header, const std::string & name, double low, double high, const char * limit = nullptr);
// or a tensor begins with numbers that are none: norms and biases are looked at in full, of matrices some rows.
void check_beginnings(const std::string & path, const file_header & header);

// The first tensor of the file that has a number that is none, of whatever size and type, else the one with the largest
// number; empty: it has no numbers. For messages: it reads the whole file.
struct suspect {
    std::string tensor;
    float       largest = 0; // infinity for a number that is none
};
suspect find_suspect(const std::string & path, const file_header & header);

// can a matrix of this type be multiplied with activations?
bool is_weight_type(ggml_type type);

bool is_utf8(const std::string & text);

} // namespace pyfastv
