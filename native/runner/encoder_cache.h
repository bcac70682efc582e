#pragma once

#include <cstddef>
#include <list>
#include <string>
#include <vector>

namespace pyfastv {

// Outputs of the vision encoder and projector, by what they were made from; the least recently used leave first.
class encoder_cache {
public:
    explicit encoder_cache(size_t max_bytes) : max_bytes(max_bytes) {}

    // F32 [n]; null if it is not there. Valid until the next put().
    const float * find(const std::string & key);

    // what is larger than all of the cache is not kept
    void put(const std::string & key, const float * values, size_t n);

private:
    struct entry {
        std::string        key;
        std::vector<float> values;

        size_t bytes() const { return values.size()*sizeof(float); }
    };

    const size_t max_bytes;

    std::list<entry> entries; // most recently used first
    size_t           bytes = 0;
};

} // namespace pyfastv
