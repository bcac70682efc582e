#include "choose/grid.h"

#include <cmath>

namespace pyfastv {

std::vector<patch_grid> grids_from(int32_t n, int32_t nx, int32_t ny) {
    const int64_t cells   = (int64_t) nx*ny;
    const double  ratio   = cells > 0 ? (double) nx/ny : 1.0;
    const auto    columns = (int32_t) std::lround(std::sqrt(n*ratio));

    if (cells > 0 && n % cells == 0) {
        return std::vector<patch_grid>(n/cells, { nx, ny });
    }
    if (columns > 0 && n % columns == 0 && (int32_t) std::lround(columns/ratio) == n/columns) {
        return { { columns, n/columns } };
    }
    return { { n, 1 } };
}

} // namespace pyfastv
