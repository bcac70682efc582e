#include "runner/encoder_cache.h"

#include <algorithm>

namespace pyfastv {

const float * encoder_cache::find(const std::string & key, std::vector<int32_t> & places) {
    const auto it = std::find_if(entries.begin(), entries.end(), [&](const entry & e) { return e.key == key; });
    if (it == entries.end()) {
        return nullptr;
    }
    entries.splice(entries.begin(), entries, it);

    places = it->places;
    return it->values.data();
}

void encoder_cache::put(const std::string & key, const float * values, size_t n, const std::vector<int32_t> & places) {
    if (n*sizeof(float) > max_bytes) {
        return;
    }
    entries.push_front({ key, std::vector<float>(values, values + n), places });
    bytes += entries.front().bytes();

    while (bytes > max_bytes) {
        bytes -= entries.back().bytes();
        entries.pop_back();
    }
}

} // namespace pyfastv
