#pragma once

#include "runner/encoder_cache.h"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace pyfastv {

// What the encoder made of slices of pictures, in a folder that processes share: a file for each, which its user alone can read.
// A file that is damaged, cut off, of another format, of another user or no file at all is as none, and is replaced. What cannot
// be written is not kept; nothing here is an error once the folder is there.
class encoder_files {
public:
    // Makes the folder. made_by: all that rows depend on but the picture, part of every key. Throws error(option).
    encoder_files(std::string folder, std::string made_by, int64_t max_bytes);

    // What a slice has to be to be the one of its key.
    struct shape {
        size_t  n_values;
        size_t  n_tokens;
        int64_t n_patches; // places are below
    };

    std::optional<encoded_slice> find(const std::string & key, const shape & of) const;

    // Then those that were not used for longest go, until all of the folder's fit.
    void put(const std::string & key, const encoded_slice & slice) const;

private:
    std::string whole_key(const std::string & key) const { return made_by + "\n" + key; }
    std::string path_of  (const std::string & whole_key) const;
    void        make_room() const;

    const std::string folder;
    const std::string made_by;
    const int64_t     max_bytes;
};

} // namespace pyfastv
