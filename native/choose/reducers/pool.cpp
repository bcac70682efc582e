#include "choose/reducers/methods.h"

#include <algorithm>
#include <cmath>

namespace pyfastv {

int32_t window_grid::begin(int32_t i, int32_t windows, int32_t patches, int32_t side) {
    return side > 0 ? std::min(i*side, patches) : (int32_t) ((int64_t) i*patches/windows);
}

window_grid windows_of_side(const patch_grid & slice, int32_t side) {
    side = std::min(side, std::max(slice.nx, slice.ny));
    return { (slice.nx + side - 1)/side, (slice.ny + side - 1)/side, side };
}

window_grid windows_by_count(const patch_grid & slice, size_t m) {
    window_grid best = { 1, 1, 0 };
    double least = INFINITY;

    for (int32_t nx = 1; nx <= slice.nx && (size_t) nx <= m; ++nx) {
        for (int32_t ny = 1; ny <= slice.ny && (size_t) nx*ny <= m; ++ny) {
            // the shortfall counts more than the windows' shape: what is asked for is a number of tokens
            const double shortfall = (double) (m - (size_t) nx*ny)/m;
            const double stretch   = std::abs(std::log(((double) nx*slice.ny)/((double) ny*slice.nx)));
            if (4*shortfall + stretch < least - 1e-12) {
                least = 4*shortfall + stretch;
                best  = { nx, ny, 0 };
            }
        }
    }
    return best;
}

std::vector<window_grid> pool_windows(const reducer & how, const std::vector<patch_grid> & slices) {
    std::vector<window_grid> res;
    if (how.keep == 0) {
        for (const auto & slice : slices) {
            res.push_back(windows_of_side(slice, how.window));
        }
        return res;
    }

    const auto sizes = sizes_of(slices);
    size_t n = 0;
    for (const size_t size : sizes) {
        n += size;
    }
    const auto budgets = share_out(std::max(count_of(how.keep, n), slices.size()), { sizes.begin(), sizes.end() }, sizes);
    for (size_t s = 0; s < slices.size(); ++s) {
        res.push_back(windows_by_count(slices[s], std::max<size_t>(1, budgets[s])));
    }
    return res;
}

namespace {

// adds the mean over a box of patches of frames [t0, t1)
void add_mean(reduced_embeddings & res, const visual_embeddings & in, const std::vector<int64_t> & firsts,
        int32_t t0, int32_t t1, int32_t y0, int32_t y1, int32_t x0, int32_t x1) {
    std::vector<double> sum(in.d, 0);
    for (int32_t t = t0; t < t1; ++t) {
        for (int32_t y = y0; y < y1; ++y) {
            for (int32_t x = x0; x < x1; ++x) {
                const int64_t i = firsts[t] + (int64_t) y*in.slices[t].nx + x;
                for (int64_t k = 0; k < in.d; ++k) {
                    sum[k] += in.values[i*in.d + k];
                }
                res.member[i] = (int32_t) res.place.size();
            }
        }
    }

    const double count = (double) (t1 - t0)*(y1 - y0)*(x1 - x0);
    for (const double value : sum) {
        res.values.push_back((float) (value/count));
    }
    res.centre.push_back({ (t0 + t1 - 1)/2.0f, (y0 + y1 - 1)/2.0f, (x0 + x1 - 1)/2.0f });

    // half: to the lower index
    const int32_t t = (t0 + t1 - 1)/2, y = (y0 + y1 - 1)/2, x = (x0 + x1 - 1)/2;
    res.place.push_back((int32_t) (firsts[t] + (int64_t) y*in.slices[t].nx + x));
}

std::vector<int64_t> firsts_of(const std::vector<patch_grid> & slices) {
    std::vector<int64_t> res = { 0 };
    for (const auto & slice : slices) {
        res.push_back(res.back() + (int64_t) slice.nx*slice.ny);
    }
    return res;
}

// all windows of frames [t0, t1), which are of one size
void add_windows(reduced_embeddings & res, const visual_embeddings & in, const std::vector<int64_t> & firsts,
        int32_t t0, int32_t t1, const window_grid & windows) {
    const auto & slice = in.slices[t0];
    for (int32_t y = 0; y < windows.ny; ++y) {
        for (int32_t x = 0; x < windows.nx; ++x) {
            add_mean(res, in, firsts, t0, t1,
                window_grid::begin(y, windows.ny, slice.ny, windows.side), window_grid::begin(y + 1, windows.ny, slice.ny, windows.side),
                window_grid::begin(x, windows.nx, slice.nx, windows.side), window_grid::begin(x + 1, windows.nx, slice.nx, windows.side));
        }
    }
    res.slices[(t0 + t1 - 1)/2] = { windows.nx, windows.ny };
}

reduced_embeddings nothing_yet(const visual_embeddings & in) {
    reduced_embeddings res;
    res.member.assign(in.n(), -1);
    res.slices.assign(in.slices.size(), { 0, 1 });
    return res;
}

} // namespace

reduced_embeddings pool(const visual_embeddings & in, const std::vector<window_grid> & windows) {
    const auto firsts = firsts_of(in.slices);

    auto res = nothing_yet(in);
    for (int32_t s = 0; s < (int32_t) in.slices.size(); ++s) {
        add_windows(res, in, firsts, s, s + 1, windows[s]);
    }
    return res;
}

reduced_embeddings pool_frames(const visual_embeddings & in, int32_t frames, int32_t side) {
    const auto firsts  = firsts_of(in.slices);
    const auto n       = (int32_t) in.slices.size();
    const auto windows = windows_of_side(in.slices[0], side);

    frames = std::min(frames, n);

    auto res = nothing_yet(in);
    for (int32_t f = 0; f < frames; ++f) {
        add_windows(res, in, firsts, window_grid::begin(f, frames, n, 0), window_grid::begin(f + 1, frames, n, 0), windows);
    }
    return res;
}

} // namespace pyfastv
