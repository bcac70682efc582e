#include "runner/model_file.h"

#include "runner/errors.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>

namespace pyfastv {

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

} // namespace pyfastv
