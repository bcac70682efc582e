#include "runner/model_file.h"

#include "files/mmproj.h"
#include "files/model.h"
#include "runner/errors.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>

namespace pyfastv {
namespace {

template <typename F> void check_file(const std::string & path, F && check) {
    check_gguf(path);
    try {
        check(path);
    } catch (const std::runtime_error & err) {
        throw error(error_kind::model, path + ": " + err.what());
    }
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

void check_mmproj_file(const std::string & path) {
    check_file(path, check_mmproj);
}

void check_model_file(const std::string & path) {
    check_file(path, check_model);
}

} // namespace pyfastv
