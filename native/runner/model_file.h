#pragma once

#include <string>

namespace pyfastv {

// Throws error(model), which names the path, unless a GGUF file can be read there: what llama.cpp says least clearly.
void check_gguf(const std::string & path);

// As check_gguf(), and for what is wrong with the file's header: files/header.h, vision/mmproj.h, files/model.h. `path`: of a
// split model its first file; the others that are there are checked, too.
void check_header_file(const std::string & path);
void check_mmproj_file(const std::string & path);
void check_model_file(const std::string & path);

} // namespace pyfastv
