#include "files/model.h"

#include "files/header.h"

#include <stdexcept>

namespace pyfastv {

void check_model(const std::string & path) {
    const auto limits = file_limits::current();
    const auto header = file_header::read(path, limits);

    check_vectors(path, header);
}

} // namespace pyfastv
