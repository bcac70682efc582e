#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <string>
#include <vector>

namespace pyfastv {

// What the vision encoder and the projector made of a picture or of a slice of one.
struct encoded_slice {
    std::vector<float>   values; // F32 [n_tokens, n_embd_inp]
    std::vector<int32_t> places; // [n_tokens] the patch whose position a token has, in raster order; empty: all, each its own

    size_t bytes() const { return values.size()*sizeof(float) + places.size()*sizeof(int32_t); }
};

// They are kept by what they were made from; the least recently used leave first.
class encoder_cache {
public:
    explicit encoder_cache(size_t max_bytes) : max_bytes(max_bytes) {}

    // null if it is not there. Valid until the next put().
    const encoded_slice * find(const std::string & key);

    // The slice in the cache; what is larger than all of the cache pushes nothing out and is held until the next put().
    const encoded_slice & put(const std::string & key, encoded_slice slice);

private:
    struct entry {
        std::string   key;
        encoded_slice slice;
    };

    const size_t max_bytes;

    std::list<entry> entries; // most recently used first
    size_t           bytes = 0;
    encoded_slice    last; // too large for the cache
};

} // namespace pyfastv
