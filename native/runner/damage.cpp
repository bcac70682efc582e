#include "runner/damage.h"

#include "files/header.h"
#include "runner/errors.h"

#include <cfloat>
#include <exception>
#include <string>

namespace pyfastv {
namespace {

// of the files, the tensor whose numbers explain it best
std::string blame(const engine_options & options) {
    suspect     most;
    std::string file;
    for (const auto & path : { options.mmproj_path.value_or(""), options.model_path }) {
        if (path.empty()) {
            continue;
        }
        const auto found = find_suspect(path, file_header::read(path, file_limits::current()));
        if (found.largest > most.largest) {
            most = found;
            file = path;
        }
    }
    if (file.empty()) {
        return "";
    }
    return ": " + file + ": tensor " + most.tensor + " has " +
        (most.largest > FLT_MAX ? "values that are not finite" : "the largest number, " + std::to_string(most.largest));
}

} // namespace

void check_numbers(const float * values, size_t n, const char * what, const engine_options & options) {
    bool wrong = false, differ = n < 2;
    for (size_t i = 0; i < n; ++i) {
        wrong  |= !(values[i] <= FLT_MAX); // NaN, or infinite; -inf is how models rule tokens out
        differ |= values[i] != values[0];
    }
    if (!wrong && differ) {
        return;
    }
    std::string why;
    try {
        why = blame(options);
    } catch (const std::exception & err) {
        why = std::string(": ") + err.what();
    }
    throw error(error_kind::model, std::string(what) + " computes no finite numbers, or only one: the file is damaged" + why);
}

} // namespace pyfastv
