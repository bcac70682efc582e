#pragma once

#include <cstdint>
#include <string>

namespace pyfastv {

// What the header of a file may claim before memory is taken for it. The environment variable PYFASTV_LIMITS changes
// them, in libllama's programs, too: "layers=2000,context=134217728".
struct file_limits {
    uint64_t keys       = 65536;
    uint64_t tensors    = 1 << 20;
    uint64_t string     = 64 << 20;  // bytes
    uint64_t array      = 16 << 20;  // elements
    uint64_t layers     = 1024;
    uint64_t vocabulary = 4 << 20;   // tokens
    uint64_t context    = 64 << 20;  // tokens
    uint64_t width      = 1 << 20;   // of a row between layers, in numbers
    uint64_t image_size = 4096;      // pixels of a side, and where a size is in pixels its square
    uint64_t tiles      = 256;       // slices of one picture

    // throws std::invalid_argument, which is no std::runtime_error as what is wrong with a file
    static file_limits parse(const std::string & text);

    // those of the environment
    static file_limits current();
};

} // namespace pyfastv
