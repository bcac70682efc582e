#pragma once

#include "runner/errors.h"
#include "runner/forks.h"
#include "runner/options.h"

#include "pyfastv.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

// between the types of native/runner and those of Python

using rgb_array = pybind11::array_t<uint8_t, pybind11::array::c_style>;

template <typename T>
pybind11::array_t<T> to_array(const std::vector<T> & values) {
    return pybind11::array_t<T>(values.size(), values.data());
}

// `what`: "runner"
inline void refuse_inherited(const pyfastv::inheritable & made, const std::string & what) {
    if (made.inherited()) {
        throw pyfastv::error(pyfastv::error_kind::closed, "this " + what + " was made before this process was forked, and its threads are "
            "in the parent: make one in the child, or start processes with multiprocessing's spawn");
    }
}

// they share the arrays' memory; of each, or empty: frames, its number in its video, 0 or empty where it is of none; contents:
// image::content; enlarge: image::enlarge
inline std::vector<pyfastv::image> to_images(const std::vector<rgb_array> & arrays, const std::vector<std::string> & ids,
        const std::vector<int32_t> & frames = {}, const std::vector<std::string> & contents = {}, const std::vector<bool> & enlarge = {}) {
    using pyfastv::error;
    using pyfastv::error_kind;

    const size_t n    = arrays.size();
    const auto   fits = [n](size_t given) { return given == 0 || given == n; };
    if (ids.size() != n || !fits(frames.size()) || !fits(contents.size()) || !fits(enlarge.size())) {
        throw error(error_kind::option, "there must be one id, one frame number, one content and one enlarge for each picture");
    }
    std::vector<pyfastv::image> images;
    for (size_t i = 0; i < n; ++i) {
        const auto & array = arrays[i];

        if (array.ndim() != 3 || array.shape(2) != 3 || array.size() == 0) {
            throw error(error_kind::image, "a picture must be an array of uint8 [height, width, 3]");
        }
        images.push_back({ (uint32_t) array.shape(1), (uint32_t) array.shape(0), array.data(), ids[i], frames.empty() ? 0 : frames[i],
            contents.empty() ? "" : contents[i], enlarge.empty() || enlarge[i] });
    }
    return images;
}

// [picture][slice] (nx, ny)
inline pybind11::list to_grids(const std::vector<pyfastv_grid> & grids) {
    pybind11::list res;
    for (const auto & grid : grids) {
        while ((int32_t) res.size() <= grid.picture) {
            res.append(pybind11::list());
        }
        res[grid.picture].cast<pybind11::list>().append(pybind11::make_tuple(grid.nx, grid.ny));
    }
    return res;
}
