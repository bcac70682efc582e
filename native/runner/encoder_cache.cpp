#include "runner/encoder_cache.h"

#include <algorithm>
#include <utility>

namespace pyfastv {

const encoded_slice * encoder_cache::find(const std::string & key) {
    const auto it = std::find_if(entries.begin(), entries.end(), [&](const entry & e) { return e.key == key; });
    if (it == entries.end()) {
        return nullptr;
    }
    entries.splice(entries.begin(), entries, it);

    return &it->slice;
}

const encoded_slice & encoder_cache::put(const std::string & key, encoded_slice slice) {
    last = {};
    if (slice.bytes() > max_bytes) {
        last = std::move(slice);
        return last;
    }
    bytes += slice.bytes();
    entries.push_front({ key, std::move(slice) });

    while (bytes > max_bytes) {
        bytes -= entries.back().slice.bytes();
        entries.pop_back();
    }
    return entries.front().slice;
}

} // namespace pyfastv
