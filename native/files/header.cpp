#include "files/header.h"

#include <cmath>
#include <cstring>
#include <fstream>
#include <stdexcept>

namespace pyfastv {
namespace {

void check_limit(const std::string & what, uint64_t claimed, uint64_t limit, const char * name) {
    if (claimed > limit) {
        refuse(what + " is " + std::to_string(claimed) + ", more than " + std::to_string(limit) + " (PYFASTV_LIMITS=" + name + "=... allows more)");
    }
}

// Reads what is there; `place` says what was being read when it is not.
class reader {
public:
    reader(const std::string & path, const file_limits & limits) : limits(limits), file(path, std::ios::binary) {
        file.seekg(0, std::ios::end);
        size = file ? (uint64_t) file.tellg() : 0;
        file.seekg(0);
    }

    std::string place = "its beginning";
    uint64_t    size  = 0;

    template <typename T> T number() {
        T value{};
        bytes(&value, sizeof(value));
        return value;
    }

    std::string text() {
        const auto n = number<uint64_t>();
        check_limit("the length of a string at " + place, n, limits.string, "string");
        if (n > left()) {
            truncated();
        }
        std::string res((size_t) n, '\0');
        bytes(res.data(), res.size());
        return res;
    }

    void skip(uint64_t n) {
        if (n > left()) {
            truncated();
        }
        if (n < 4096) {
            file.ignore((std::streamsize) n); // keeps what the stream has read ahead
        } else {
            file.seekg((std::streamoff) n, std::ios::cur);
        }
        at += n;
    }

    uint64_t tell() const { return at; }
    uint64_t left() const { return size - at; }

    [[noreturn]] void truncated() const {
        refuse("is truncated or damaged: it ends inside its header, in " + place);
    }

private:
    void bytes(void * to, size_t n) {
        if (n > left()) {
            truncated();
        }
        file.read((char *) to, (std::streamsize) n);
        at += n;
    }

    file_limits   limits;
    std::ifstream file;
    uint64_t      at = 0;
};

size_t size_of(gguf_type type) {
    switch (type) {
        case GGUF_TYPE_UINT8:  case GGUF_TYPE_INT8: case GGUF_TYPE_BOOL:      return 1;
        case GGUF_TYPE_UINT16: case GGUF_TYPE_INT16:                          return 2;
        case GGUF_TYPE_UINT32: case GGUF_TYPE_INT32: case GGUF_TYPE_FLOAT32:  return 4;
        case GGUF_TYPE_UINT64: case GGUF_TYPE_INT64: case GGUF_TYPE_FLOAT64:  return 8;
        default:                                                              return 0;
    }
}

double read_number(reader & in, gguf_type type) {
    switch (type) {
        case GGUF_TYPE_UINT8:   return in.number<uint8_t>();
        case GGUF_TYPE_INT8:    return in.number<int8_t>();
        case GGUF_TYPE_BOOL:    return in.number<int8_t>() != 0;
        case GGUF_TYPE_UINT16:  return in.number<uint16_t>();
        case GGUF_TYPE_INT16:   return in.number<int16_t>();
        case GGUF_TYPE_UINT32:  return in.number<uint32_t>();
        case GGUF_TYPE_INT32:   return in.number<int32_t>();
        case GGUF_TYPE_FLOAT32: return in.number<float>();
        case GGUF_TYPE_UINT64:  return (double) in.number<uint64_t>();
        case GGUF_TYPE_INT64:   return (double) in.number<int64_t>();
        default:                return in.number<double>();
    }
}

header_value read_value(reader & in, const std::string & name, const file_limits & limits) {
    header_value res;
    res.type = (gguf_type) in.number<int32_t>();
    if (res.type == GGUF_TYPE_ARRAY) {
        res.is_array = true;
        res.type     = (gguf_type) in.number<int32_t>();
        res.n        = in.number<uint64_t>();
        check_limit("the length of the array " + name, res.n, limits.array, "array");
    }
    const bool is_string = res.type == GGUF_TYPE_STRING;
    if (!is_string && size_of(res.type) == 0) {
        refuse("key " + name + " is of the unknown type " + std::to_string((int) res.type));
    }
    if (res.n > in.left()/(is_string ? sizeof(uint64_t) : size_of(res.type))) {
        in.truncated();
    }
    for (uint64_t i = 0; i < res.n; ++i) {
        if (!is_string) {
            const double value = read_number(in, res.type);
            res.finite = res.finite && (res.is_array ? !std::isnan(value) : std::isfinite(value));
            if (i < header_value::max_numbers) {
                res.numbers.push_back(value);
            }
        } else if (res.is_array) {
            const auto n = in.number<uint64_t>();
            check_limit("the length of a string in the array " + name, n, limits.string, "string");
            in.skip(n);
        } else {
            res.text = in.text();
        }
    }
    return res;
}

header_tensor read_tensor(reader & in, const std::string & name) {
    const auto n_dims = in.number<uint32_t>();
    if (n_dims > GGML_MAX_DIMS) {
        refuse("tensor " + name + " has " + std::to_string(n_dims) + " dimensions, more than " + std::to_string(GGML_MAX_DIMS));
    }
    header_tensor res{ { 1, 1, 1, 1 }, 1, GGML_TYPE_F32, 0, 0 };
    for (uint32_t d = 0; d < n_dims; ++d) {
        res.ne[d] = in.number<int64_t>();
        if (res.ne[d] < 1) {
            refuse("tensor " + name + " has a dimension of " + std::to_string(res.ne[d]));
        }
        if (res.ne[d] > 1) {
            res.n_dims = (int) d + 1;
        }
    }
    const auto type = in.number<int32_t>();
    if (type < 0 || type >= GGML_TYPE_COUNT || ggml_blck_size((ggml_type) type) == 0) {
        refuse("tensor " + name + " is of the unknown type " + std::to_string(type));
    }
    res.type   = (ggml_type) type;
    res.offset = in.number<uint64_t>();

    if (res.ne[0] % ggml_blck_size(res.type) != 0) {
        refuse("tensor " + name + " has rows of " + std::to_string(res.ne[0]) + ", no whole number of blocks of " + ggml_type_name(res.type));
    }
    // in floating point, where a product of claims cannot overflow
    const double n_bytes = (double) res.ne[0]/ggml_blck_size(res.type)*ggml_type_size(res.type)*res.ne[1]*res.ne[2]*res.ne[3];
    if (n_bytes > (double) in.size) {
        refuse("is truncated or damaged: tensor " + name + " (" + shape_text(res) + ") is larger than the file");
    }
    res.n_bytes = ggml_row_size(res.type, res.ne[0])*res.ne[1]*res.ne[2]*res.ne[3];
    return res;
}

uint64_t alignment_of(const file_header & header) {
    const auto * value = header.key("general.alignment");
    if (!value) {
        return GGUF_DEFAULT_ALIGNMENT;
    }
    const auto n = value->numbers.empty() ? 0 : (uint64_t) value->numbers[0];
    if (value->is_array || value->type != GGUF_TYPE_UINT32 || n == 0 || (n & (n - 1)) != 0) {
        refuse("general.alignment must be a power of two");
    }
    return n;
}

} // namespace

void refuse(const std::string & reason) {
    throw std::runtime_error(reason);
}

const header_value * file_header::key(const std::string & name) const {
    const auto it = keys.find(name);
    return it == keys.end() ? nullptr : &it->second;
}

const header_tensor * file_header::tensor(const std::string & name) const {
    const auto it = tensors.find(name);
    return it == tensors.end() ? nullptr : &it->second;
}

file_header file_header::read(const std::string & path, const file_limits & limits) {
    file_header res;
    reader      in(path, limits);

    const auto magic   = in.number<uint32_t>();
    const auto version = in.number<uint32_t>();
    if (memcmp(&magic, GGUF_MAGIC, sizeof(magic)) != 0 || version < 2 || version > GGUF_VERSION) {
        return res;
    }
    const auto n_tensors = in.number<uint64_t>();
    const auto n_keys    = in.number<uint64_t>();
    check_limit("the number of tensors", n_tensors, limits.tensors, "tensors");
    check_limit("the number of keys", n_keys, limits.keys, "keys");

    for (uint64_t i = 0; i < n_keys; ++i) {
        in.place = "key " + std::to_string(i + 1) + " of " + std::to_string(n_keys);
        const auto name = in.text();
        if (name.empty() || name.size() > 65535) {
            refuse(in.place + " has a name of " + std::to_string(name.size()) + " bytes");
        }
        in.place = "key " + name;
        if (!res.keys.emplace(name, read_value(in, name, limits)).second) {
            refuse("has the key " + name + " twice");
        }
    }
    for (uint64_t i = 0; i < n_tensors; ++i) {
        in.place = "tensor " + std::to_string(i + 1) + " of " + std::to_string(n_tensors);
        const auto name = in.text();
        if (name.empty() || name.size() >= GGML_MAX_NAME) {
            refuse(in.place + " has a name of " + std::to_string(name.size()) + " bytes, which must be 1 to " + std::to_string(GGML_MAX_NAME - 1));
        }
        in.place = "tensor " + name;
        if (!res.tensors.emplace(name, read_tensor(in, name)).second) {
            refuse("has the tensor " + name + " twice");
        }
    }

    const uint64_t alignment = alignment_of(res);
    const uint64_t start     = (in.tell() + alignment - 1)/alignment*alignment;
    for (auto & [name, tensor] : res.tensors) {
        if (start > in.size || tensor.offset > in.size - start || tensor.n_bytes > in.size - start - tensor.offset) {
            refuse("is truncated or damaged: tensor " + name + " ends behind the end of the file");
        }
        tensor.offset += start;
    }
    return res;
}

std::string shape_text(const header_tensor & tensor) {
    std::string res = std::to_string(tensor.ne[0]);
    for (int d = 1; d < tensor.n_dims; ++d) {
        res += " x " + std::to_string(tensor.ne[d]);
    }
    return res;
}

} // namespace pyfastv
