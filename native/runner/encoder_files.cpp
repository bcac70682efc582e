#include "runner/encoder_files.h"

#include "runner/errors.h"

#include <fcntl.h>
#include <stdlib.h> // mkstemps
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

namespace fs = std::filesystem;

namespace pyfastv {
namespace {

constexpr char magic[8]  = { 'p', 'y', 'f', 'r', 'o', 'w', 's', '1' }; // the last is the format's version
constexpr char ending[]  = ".rows";
constexpr char writing[] = ".part"; // until it is whole

constexpr auto abandoned = std::chrono::hours(1); // nobody writes to a part any more

// then the key, the values, the places, and a checksum of all before it; as this machine has its numbers
struct head {
    char     magic[8];
    uint64_t n_key;    // bytes
    uint64_t n_values;
    uint64_t n_places; // 0, or one a token
};

// Of the same length, two texts that differ in one word never have the same.
uint64_t checksum(const char * data, size_t size, uint64_t seed) {
    uint64_t res = seed ^ size;
    for (size_t i = 0; i < size; i += sizeof(uint64_t)) {
        uint64_t word = 0;
        memcpy(&word, data + i, std::min(sizeof(word), size - i));
        res = (res ^ word)*0x9e3779b97f4a7c15u;
        res ^= res >> 32;
    }
    return res;
}

class descriptor {
public:
    explicit descriptor(int fd) : fd(fd) {}
    ~descriptor() {
        if (fd >= 0) {
            ::close(fd);
        }
    }
    descriptor(const descriptor &) = delete;

    operator int() const { return fd; }

private:
    const int fd;
};

bool write_all(int fd, const char * data, size_t size) {
    while (size > 0) {
        const ssize_t n = ::write(fd, data, size);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return false;
        }
        data += n;
        size -= (size_t) n;
    }
    return true;
}

bool read_all(int fd, char * data, size_t size) {
    while (size > 0) {
        const ssize_t n = ::read(fd, data, size);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return false;
        }
        data += n;
        size -= (size_t) n;
    }
    return true;
}

// A new file in the folder, for its user alone; below 0: there can be none. path: becomes its name.
int make_part(const std::string & folder, std::string & path) {
    path = folder + "/.XXXXXX" + writing;
    return ::mkstemps(path.data(), (int) strlen(writing));
}

std::string hex(uint64_t value) {
    char text[17];
    snprintf(text, sizeof(text), "%016llx", (unsigned long long) value);
    return text;
}

bool ends_with(const std::string & text, const std::string & with) {
    return text.size() >= with.size() && text.compare(text.size() - with.size(), with.size(), with) == 0;
}

} // namespace

encoder_files::encoder_files(std::string folder_in, std::string made_by_in, int64_t max_bytes) :
        folder(std::move(folder_in)), made_by(std::move(made_by_in)), max_bytes(max_bytes) {
    const auto fail = [this](const std::string & reason) {
        throw error(error_kind::option, "encoder_cache_dir = " + folder + ": cannot be written: " + reason + "; name a folder that can be, or none");
    };
    std::error_code failed;
    fs::create_directories(fs::path(folder).parent_path(), failed); // told by what follows
    if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) {
        fail(strerror(errno));
    }
    std::string      part;
    const descriptor fd(make_part(folder, part));
    if (fd < 0) {
        fail(strerror(errno));
    }
    ::unlink(part.c_str());
}

std::string encoder_files::path_of(const std::string & key) const {
    return folder + "/" + hex(checksum(key.data(), key.size(), 1)) + hex(checksum(key.data(), key.size(), 0x6a09e667f3bcc909u)) + ending;
}

std::optional<encoded_slice> encoder_files::find(const std::string & key_in, const shape & of) const try {
    const auto key = whole_key(key_in);

    // never waits for a pipe
    const descriptor fd(::open(path_of(key).c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    struct stat      found = {};
    if (fd < 0 || ::fstat(fd, &found) != 0 || !S_ISREG(found.st_mode) || found.st_uid != ::geteuid()) {
        return std::nullopt;
    }
    const auto size_with = [&](size_t n_places) {
        return sizeof(head) + key.size() + of.n_values*sizeof(float) + n_places*sizeof(int32_t) + sizeof(uint64_t);
    };
    // before memory is taken for it
    const auto size = (uint64_t) found.st_size;
    if (size != size_with(0) && size != size_with(of.n_tokens)) {
        return std::nullopt;
    }
    std::vector<char> data(size);
    if (!read_all(fd, data.data(), size)) {
        return std::nullopt;
    }

    head     told = {};
    uint64_t sum  = 0;
    memcpy(&told, data.data(), sizeof(told));
    memcpy(&sum, data.data() + size - sizeof(sum), sizeof(sum));
    if (memcmp(told.magic, magic, sizeof(magic)) != 0 || told.n_key != key.size() || told.n_values != of.n_values ||
            (told.n_places != 0 && told.n_places != of.n_tokens) || size != size_with(told.n_places) ||
            sum != checksum(data.data(), size - sizeof(sum), 0) || memcmp(data.data() + sizeof(told), key.data(), key.size()) != 0) {
        return std::nullopt;
    }
    encoded_slice res;
    res.values.resize(told.n_values);
    res.places.resize(told.n_places);

    const char * at = data.data() + sizeof(told) + key.size();
    memcpy(res.values.data(), at, res.values.size()*sizeof(float));
    if (!res.places.empty()) {
        memcpy(res.places.data(), at + res.values.size()*sizeof(float), res.places.size()*sizeof(int32_t));
    }
    if (std::any_of(res.places.begin(), res.places.end(), [&](int32_t place) { return place < 0 || place >= of.n_patches; })) {
        return std::nullopt;
    }
    ::futimens(fd, nullptr); // used now

    return res;
} catch (const std::exception &) {
    return std::nullopt; // no memory for it
}

void encoder_files::put(const std::string & key_in, const encoded_slice & slice) const try {
    const auto key = whole_key(key_in);

    head told = {};
    memcpy(told.magic, magic, sizeof(magic));
    told.n_key    = key.size();
    told.n_values = slice.values.size();
    told.n_places = slice.places.size();

    std::vector<char> data;
    const auto add = [&](const void * from, size_t size) {
        const auto * bytes = static_cast<const char *>(from);
        data.insert(data.end(), bytes, bytes + size);
    };
    data.reserve(sizeof(told) + key.size() + slice.bytes() + sizeof(uint64_t));
    add(&told, sizeof(told));
    add(key.data(), key.size());
    add(slice.values.data(), slice.values.size()*sizeof(float));
    add(slice.places.data(), slice.places.size()*sizeof(int32_t));
    const uint64_t sum = checksum(data.data(), data.size(), 0);
    add(&sum, sizeof(sum));

    if ((int64_t) data.size() > max_bytes) {
        return;
    }
    std::string part;
    bool        whole = false;
    {
        const descriptor fd(make_part(folder, part));
        if (fd < 0) {
            return;
        }
        whole = write_all(fd, data.data(), data.size());
    }
    if (!whole || ::rename(part.c_str(), path_of(key).c_str()) != 0) {
        ::unlink(part.c_str());
    }
    make_room();
} catch (const std::exception &) {
    // no memory to write it with
}

void encoder_files::make_room() const {
    struct kept {
        fs::file_time_type used;
        uintmax_t          bytes;
        fs::path           path;
    };
    std::vector<kept> all;
    uintmax_t         bytes = 0;

    // files may go meanwhile: others do the same
    std::error_code failed;
    for (fs::directory_iterator it(folder, failed), end; !failed && it != end; it.increment(failed)) {
        std::error_code gone;
        const auto      name   = it->path().filename().string();
        const bool      is_part = ends_with(name, writing);
        if ((!is_part && !ends_with(name, ending)) || it->symlink_status(gone).type() != fs::file_type::regular) {
            continue;
        }
        const auto used = it->last_write_time(gone);
        const auto size = gone ? 0 : it->file_size(gone);
        if (gone) {
            continue;
        }
        if (!is_part) {
            bytes += size;
            all.push_back({ used, size, it->path() });
        } else if (used + abandoned < fs::file_time_type::clock::now()) {
            fs::remove(it->path(), gone);
        }
    }
    std::sort(all.begin(), all.end(), [](const kept & a, const kept & b) { return a.used < b.used; });

    for (size_t i = 0; i < all.size() && bytes > (uintmax_t) max_bytes; ++i) {
        bytes -= all[i].bytes;
        std::error_code gone;
        fs::remove(all[i].path, gone);
    }
}

} // namespace pyfastv
