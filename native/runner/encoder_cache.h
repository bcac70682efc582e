#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <string>
#include <vector>

namespace pyfastv {

// Outputs of the vision encoder and projector, by what they were made from; the least recently used leave first.
class encoder_cache {
public:
    explicit encoder_cache(size_t max_bytes) : max_bytes(max_bytes) {}

    // F32 [n], and the places of merged tokens; null if it is not there. Valid until the next put().
    const float * find(const std::string & key, std::vector<int32_t> & places);

    // what is larger than all of the cache is not kept
    void put(const std::string & key, const float * values, size_t n, const std::vector<int32_t> & places);

private:
    struct entry {
        std::string          key;
        std::vector<float>   values;
        std::vector<int32_t> places;

        size_t bytes() const { return values.size()*sizeof(float) + places.size()*sizeof(int32_t); }
    };

    const size_t max_bytes;

    std::list<entry> entries; // most recently used first
    size_t           bytes = 0;
};

} // namespace pyfastv
