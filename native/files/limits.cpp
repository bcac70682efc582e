#include "files/limits.h"

#include <cstdlib>
#include <sstream>
#include <stdexcept>

namespace pyfastv {
namespace {

struct limit {
    const char *           name;
    uint64_t file_limits::*place;
};

constexpr limit all_limits[] = {
    { "keys",       &file_limits::keys       },
    { "tensors",    &file_limits::tensors    },
    { "string",     &file_limits::string     },
    { "array",      &file_limits::array      },
    { "layers",     &file_limits::layers     },
    { "vocabulary", &file_limits::vocabulary },
    { "context",    &file_limits::context    },
    { "width",      &file_limits::width      },
    { "image_size", &file_limits::image_size },
    { "tiles",      &file_limits::tiles      },
};

[[noreturn]] void refuse(const std::string & part) {
    std::string names;
    for (const auto & one : all_limits) {
        names += std::string(names.empty() ? "" : ", ") + one.name;
    }
    throw std::invalid_argument("PYFASTV_LIMITS has \"" + part + "\"; expected name=number, separated by commas, of: " + names);
}

} // namespace

file_limits file_limits::parse(const std::string & text) {
    file_limits res;

    std::istringstream parts(text);
    for (std::string part; std::getline(parts, part, ','); ) {
        const size_t      at    = part.find('=');
        const std::string name  = part.substr(0, at);
        const std::string value = at == std::string::npos ? "" : part.substr(at + 1);
        if (value.empty() || value.size() > 18 || value.find_first_not_of("0123456789") != std::string::npos) {
            refuse(part);
        }
        bool known = false;
        for (const auto & one : all_limits) {
            if (name == one.name) {
                res.*one.place = std::stoull(value);
                known = true;
            }
        }
        if (!known) {
            refuse(part);
        }
    }
    return res;
}

file_limits file_limits::current() {
    const char * text = getenv("PYFASTV_LIMITS");
    return parse(text ? text : "");
}

} // namespace pyfastv
