#include "runner/model_file.h"

#include "files/header.h"
#include "vision/mmproj.h"
#include "files/model.h"
#include "runner/errors.h"

#include "llama.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <system_error>
#include <vector>

namespace pyfastv {
namespace {

template <typename F> void check_file(const std::string & path, F && check) {
    check_gguf(path);
    try {
        check(path);
    } catch (const std::invalid_argument & err) {
        throw error(error_kind::option, err.what()); // of PYFASTV_LIMITS
    } catch (const std::runtime_error & err) {
        throw error(error_kind::model, path + ": " + err.what());
    }
}

// a split model's file; empty: `first` has no name of a first one
std::string part_of(const std::string & first, uint32_t i, uint32_t n_files) {
    std::vector<char> prefix(first.size() + 1), path(first.size() + 64);
    if (llama_split_prefix(prefix.data(), prefix.size(), first.c_str(), 0, (int32_t) n_files) <= 0) {
        return "";
    }
    llama_split_path(path.data(), path.size(), prefix.data(), (int32_t) i, (int32_t) n_files);
    return path.data();
}

} // namespace

void check_gguf(const std::string & path) {
    namespace fs = std::filesystem;

    std::error_code none;
    if (!fs::exists(path, none)) {
        throw error(error_kind::model, path + ": no such file");
    }
    if (fs::is_directory(path, none)) {
        throw error(error_kind::model, path + ": is a folder, not a GGUF file");
    }
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        throw error(error_kind::model, path + ": cannot be opened for reading");
    }
    char magic[4] = {};
    file.read(magic, sizeof(magic));
    if (file.gcount() != sizeof(magic) || memcmp(magic, "GGUF", sizeof(magic)) != 0) {
        throw error(error_kind::model, path + ": is not a GGUF file");
    }
}

void check_header_file(const std::string & path) {
    check_file(path, [](const std::string & file) { file_header::read(file, file_limits::current()); });
}

void check_mmproj_file(const std::string & path) {
    check_file(path, check_mmproj);
}

void check_model_file(const std::string & path) {
    uint32_t n_files = 1;
    check_file(path, [&](const std::string & file) { n_files = check_model(file); });

    for (uint32_t i = 1; i < n_files; ++i) {
        const auto other = part_of(path, i, n_files);
        if (other.empty() || !std::filesystem::exists(other)) {
            return; // llama.cpp says what is missing
        }
        check_file(other, check_model);
    }
}

} // namespace pyfastv
