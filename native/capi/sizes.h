#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>

namespace pyfastv {

[[noreturn]] inline void refuse_size(const char * name, size_t given, size_t known) {
    throw std::invalid_argument(std::string(name) + ".size = " + std::to_string(given) + ", and this version of the library knows " +
            std::to_string(known) + ": set it to sizeof(struct " + name + "), and load a library that is as new as the header");
}

// Structures grow at their end. The sizes that this one had in earlier versions would be known, too; there are none.
template <typename T>
void check_size(const char * name, size_t given) {
    if (given != sizeof(T)) {
        refuse_size(name, given, sizeof(T));
    }
}

} // namespace pyfastv
