// Products with small matrices of weights, one kernel at a time: `pyfastv info --check` runs them.

#include "bindings/bindings.h"

#include "kernels/names.h"
#include "runner/errors.h"
#include "runner/log.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace py = pybind11;

using namespace py::literals;

using pyfastv::error;
using pyfastv::error_kind;

namespace {

using matrix = py::array_t<float,   py::array::c_style | py::array::forcecast>;
using blocks = py::array_t<uint8_t, py::array::c_style | py::array::forcecast>;

// Where a model's weights can lie: the buffers that a device has for them choose its kernels.
struct place {
    ggml_backend_dev_t         device;
    ggml_backend_buffer_type_t buffer;
};

// in llama.cpp's order, which takes the first that supports an operation
std::vector<place> find_places() {
    std::vector<place> res;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        const auto device = ggml_backend_dev_get(i);

        if (ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU) {
            const auto extra = (ggml_backend_dev_get_extra_bufts_t)
                ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts");
            for (auto * buffer = extra ? extra(device) : nullptr; buffer && *buffer; ++buffer) {
                res.push_back({ device, *buffer });
            }
        }
        res.push_back({ device, ggml_backend_dev_buffer_type(device) });
    }
    return res;
}

place find_place(const std::string & device, const std::string & buffer) {
    for (const auto & place : find_places()) {
        if (device == ggml_backend_dev_name(place.device) && buffer == ggml_backend_buft_name(place.buffer)) {
            return place;
        }
    }
    throw std::invalid_argument("there is no device " + device + " with buffers " + buffer);
}

bool is_weight_type(ggml_type type) {
    const auto * traits = ggml_get_type_traits(type);
    return type == GGML_TYPE_F32 || (traits->to_float && traits->blck_size > 0);
}

ggml_type find_type(const std::string & name) {
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        if (is_weight_type((ggml_type) i) && name == ggml_type_name((ggml_type) i)) {
            return (ggml_type) i;
        }
    }
    throw std::invalid_argument("\"" + name + "\" is not a type of weights");
}

void check_columns(int64_t n_columns, ggml_type type) {
    if (n_columns < 1 || n_columns % ggml_blck_size(type) != 0) {
        throw std::invalid_argument("a matrix of " + std::string(ggml_type_name(type)) + " has a multiple of " +
            std::to_string(ggml_blck_size(type)) + " columns; got " + std::to_string(n_columns));
    }
}

void check_matrix(const py::array & array, const char * name) {
    if (array.ndim() != 2 || array.size() == 0) {
        throw std::invalid_argument(std::string(name) + " must be a matrix with at least one row and column");
    }
}

template <typename T>
T * or_out_of_memory(T * pointer) {
    if (!pointer) {
        throw error(error_kind::out_of_memory, "out of memory");
    }
    return pointer;
}

ggml_context_ptr make_tensors(size_t n) {
    return ggml_context_ptr(or_out_of_memory(ggml_init({ n*ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, /* no_alloc */ true })));
}

py::list kernel_places() {
    py::list res;
    for (const auto & place : find_places()) {
        res.append(py::make_tuple(ggml_backend_dev_name(place.device), ggml_backend_buft_name(place.buffer)));
    }
    return res;
}

py::dict kernels() {
    py::list here;
    for (int i = 0; pyfastv_kernels_at(i); ++i) {
        here.append(pyfastv_kernels_at(i));
    }
    const char * chosen = pyfastv_kernels_name();
    return py::dict("chosen"_a = chosen ? py::object(py::str(chosen)) : py::none(), "known"_a = here);
}

py::list weight_types() {
    py::list res;
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        if (is_weight_type((ggml_type) i)) {
            res.append(ggml_type_name((ggml_type) i));
        }
    }
    return res;
}

// To quantize to types with a codebook, ggml searches it for seconds first; any bits are blocks of them, too.
bool has_codebook(ggml_type type) {
    switch (type) {
        case GGML_TYPE_IQ1_S:
        case GGML_TYPE_IQ1_M:
        case GGML_TYPE_IQ2_XXS:
        case GGML_TYPE_IQ2_XS:
        case GGML_TYPE_IQ2_S:
        case GGML_TYPE_IQ3_XXS:
        case GGML_TYPE_IQ3_S: return true;
        default:              return false;
    }
}

// random bits with a scale that keeps the values near 1
void fill_blocks(ggml_type type, uint8_t * bytes, size_t n_bytes, std::mt19937 & random) {
    for (size_t i = 0; i < n_bytes; ++i) {
        bytes[i] = (uint8_t) random();
    }
    const size_t      block = ggml_type_size(type);
    const ggml_fp16_t scale = ggml_fp32_to_fp16(0.05f);

    for (uint8_t * at = bytes; at < bytes + n_bytes; at += block) {
        if (type != GGML_TYPE_IQ1_M) {
            std::memcpy(at, &scale, sizeof(scale));
            continue;
        }
        for (int i = 0; i < 4; ++i) { // four bits of it on top of each of the last four numbers of 16 bits
            uint8_t & top = at[block - 8 + 2*i + 1];
            top = (top & 0x0F) | ((scale >> 4*i & 0xF) << 4);
        }
    }
}

py::tuple random_weights(const std::string & type_name, int64_t n, int64_t k, uint32_t seed) {
    const auto type = find_type(type_name);
    check_columns(k, type);
    if (n < 1) {
        throw std::invalid_argument("a matrix has at least one row; got " + std::to_string(n));
    }

    blocks weights({ (py::ssize_t) n, (py::ssize_t) ggml_row_size(type, k) });
    matrix values({ (py::ssize_t) n, (py::ssize_t) k });

    uint8_t * bytes = weights.mutable_data();
    float   * back  = values.mutable_data();
    {
        const py::gil_scoped_release release;

        std::mt19937 random(seed);
        if (has_codebook(type)) {
            fill_blocks(type, bytes, weights.size(), random);
        } else {
            std::normal_distribution<float> normal;
            std::generate_n(back, n*k, [&] { return normal(random); });
            ggml_quantize_chunk(type, back, bytes, 0, n, k, nullptr);
        }
        if (type != GGML_TYPE_F32) {
            ggml_get_type_traits(type)->to_float(bytes, back, n*k);
        }
    }
    return py::make_tuple(weights, values);
}

// false: weights of this type do not go into these buffers
bool multiply_into(float * out, const place & place, ggml_type type, const uint8_t * bytes, int64_t n, const float * inputs, int64_t m, int64_t k, int n_threads) {
    const auto weights_ctx = make_tensors(1), rows_ctx = make_tensors(2);

    auto * weights = ggml_new_tensor_2d(weights_ctx.get(), type, k, n);
    auto * rows    = ggml_new_tensor_2d(rows_ctx.get(), GGML_TYPE_F32, k, m);
    auto * product = ggml_mul_mat(rows_ctx.get(), weights, rows);

    const ggml_backend_buffer_ptr weights_memory(or_out_of_memory(ggml_backend_alloc_ctx_tensors_from_buft(weights_ctx.get(), place.buffer)));
    ggml_backend_buffer_set_usage(weights_memory.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    if (!ggml_backend_dev_supports_op(place.device, product)) {
        return false;
    }

    const ggml_backend_buffer_ptr rows_memory(or_out_of_memory(
        ggml_backend_alloc_ctx_tensors_from_buft(rows_ctx.get(), ggml_backend_dev_buffer_type(place.device))));
    ggml_backend_tensor_set(weights, bytes,  0, ggml_nbytes(weights));
    ggml_backend_tensor_set(rows,    inputs, 0, ggml_nbytes(rows));

    const ggml_backend_ptr backend(or_out_of_memory(ggml_backend_dev_init(place.device, nullptr)));
    const auto set_n_threads = (ggml_backend_set_n_threads_t)
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(place.device), "ggml_backend_set_n_threads");
    if (set_n_threads) {
        set_n_threads(backend.get(), n_threads);
    }

    const auto graph_ctx = make_tensors(0);
    auto * graph = ggml_new_graph(graph_ctx.get());
    ggml_build_forward_expand(graph, product);

    const auto status = ggml_backend_graph_compute(backend.get(), graph);
    if (status != GGML_STATUS_SUCCESS) {
        throw error(error_kind::decode, std::string(ggml_backend_dev_name(place.device)) + ": " + ggml_status_to_string(status));
    }
    ggml_backend_tensor_get(product, out, 0, ggml_nbytes(product));
    return true;
}

py::object multiply(const std::string & device, const std::string & buffer, const std::string & type_name, const blocks & weights, const matrix & inputs, int n_threads) {
    check_matrix(weights, "weights");
    check_matrix(inputs, "inputs");
    const auto    place = find_place(device, buffer);
    const auto    type  = find_type(type_name);
    const int64_t n = weights.shape(0), m = inputs.shape(0), k = inputs.shape(1);
    check_columns(k, type);
    if ((size_t) weights.shape(1) != ggml_row_size(type, k)) {
        throw std::invalid_argument("weights has rows of " + std::to_string(weights.shape(1)) + " bytes; " + std::to_string(k) + " columns of " +
            type_name + " have " + std::to_string(ggml_row_size(type, k)));
    }
    if (n_threads < 1) {
        throw std::invalid_argument("n_threads must be at least 1; got " + std::to_string(n_threads));
    }

    matrix product({ (py::ssize_t) m, (py::ssize_t) n });

    const auto * bytes  = weights.data();
    const auto * rows   = inputs.data();
    auto       * out    = product.mutable_data();
    const bool supported = [&] {
        const py::gil_scoped_release release;
        const pyfastv::log_scope     log(false);
        return multiply_into(out, place, type, bytes, n, rows, m, k, n_threads);
    }();
    return supported ? py::object(product) : py::none();
}

} // namespace

void bind_kernels(py::module_ & m) {
    m.def("kernels", &kernels);
    m.def("kernel_places", &kernel_places);
    m.def("weight_types", &weight_types);
    m.def("random_weights", &random_weights, "type"_a, "n_rows"_a, "n_columns"_a, "seed"_a);
    m.def("multiply", &multiply, "device"_a, "buffer"_a, "type"_a, "weights"_a, "inputs"_a, "n_threads"_a);
}
