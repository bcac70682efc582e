// GGUF files: what their header says, and excerpts of them

#include "bindings/bindings.h"

#include "runner/errors.h"
#include "runner/gguf_file.h"
#include "runner/log.h"
#include "runner/model_file.h"

#include "ggml-cpp.h"
#include "gguf.h"

#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <filesystem>
#include <string>
#include <vector>

namespace py = pybind11;

using namespace py::literals;

namespace {

py::object scalar(gguf_type type, const void * data, size_t i) {
    switch (type) {
        case GGUF_TYPE_UINT8:   return py::int_(((const uint8_t  *) data)[i]);
        case GGUF_TYPE_INT8:    return py::int_(((const int8_t   *) data)[i]);
        case GGUF_TYPE_UINT16:  return py::int_(((const uint16_t *) data)[i]);
        case GGUF_TYPE_INT16:   return py::int_(((const int16_t  *) data)[i]);
        case GGUF_TYPE_UINT32:  return py::int_(((const uint32_t *) data)[i]);
        case GGUF_TYPE_INT32:   return py::int_(((const int32_t  *) data)[i]);
        case GGUF_TYPE_UINT64:  return py::int_(((const uint64_t *) data)[i]);
        case GGUF_TYPE_INT64:   return py::int_(((const int64_t  *) data)[i]);
        case GGUF_TYPE_FLOAT32: return py::float_(((const float  *) data)[i]);
        case GGUF_TYPE_FLOAT64: return py::float_(((const double *) data)[i]);
        case GGUF_TYPE_BOOL:    return py::bool_(((const int8_t  *) data)[i] != 0);
        default:                return py::none();
    }
}

// vocabularies stay out: they are long, and nobody asks for them
constexpr size_t max_array = 4096;

py::object value(const gguf_context * file, int64_t i) {
    const auto type = gguf_get_kv_type(file, i);

    if (type == GGUF_TYPE_STRING) {
        const std::string text = gguf_get_val_str(file, i);
        return py::reinterpret_steal<py::object>(PyUnicode_DecodeUTF8(text.data(), (Py_ssize_t) text.size(), "replace"));
    }
    if (type != GGUF_TYPE_ARRAY) {
        return scalar(type, gguf_get_val_data(file, i), 0);
    }

    const auto   of = gguf_get_arr_type(file, i);
    const size_t n  = gguf_get_arr_n(file, i);
    if (of == GGUF_TYPE_STRING || of == GGUF_TYPE_ARRAY || n > max_array) {
        return py::none();
    }
    py::list res;
    for (size_t k = 0; k < n; ++k) {
        res.append(scalar(of, gguf_get_arr_data(file, i), k));
    }
    return res;
}

py::dict gguf_header(const std::filesystem::path & file_path) {
    const auto path = file_path.string();

    pyfastv::check_header_file(path);

    const pyfastv::log_scope log(false);

    ggml_context *         tensors = nullptr;
    const gguf_context_ptr file(gguf_init_from_file(path.c_str(), { /* no_alloc */ true, &tensors }));
    const ggml_context_ptr owner(tensors);
    if (!file) {
        throw log.failure(pyfastv::error_kind::model, path, "cannot be read");
    }

    py::dict metadata;
    for (int64_t i = 0; i < gguf_get_n_kv(file.get()); ++i) {
        metadata[gguf_get_key(file.get(), i)] = value(file.get(), i);
    }

    py::dict shapes;
    for (int64_t i = 0; i < gguf_get_n_tensors(file.get()); ++i) {
        const char * name   = gguf_get_tensor_name(file.get(), i);
        const auto * tensor = ggml_get_tensor(tensors, name);

        py::list shape;
        for (int d = ggml_n_dims(tensor) - 1; d >= 0; --d) {
            shape.append(tensor->ne[d]);
        }
        shapes[name] = py::make_tuple(py::tuple(shape), ggml_type_name(tensor->type), gguf_get_tensor_size(file.get(), i));
    }

    return py::dict("metadata"_a = metadata, "tensors"_a = shapes);
}

void write_excerpt(const std::vector<std::filesystem::path> & parts, int32_t n_layers, const std::filesystem::path & out) {
    const py::gil_scoped_release release;
    pyfastv::write_excerpt({ parts.begin(), parts.end() }, n_layers, out.string());
}

} // namespace

void bind_header(py::module_ & m) {
    m.def("gguf_header", &gguf_header, "path"_a, py::call_guard<pyfastv::abort_guard>());
    m.def("write_excerpt", &write_excerpt, "parts"_a, "n_layers"_a, "out"_a, py::call_guard<pyfastv::abort_guard>());
}
