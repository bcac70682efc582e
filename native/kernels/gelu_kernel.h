#pragma once

#include <cstdint>

namespace pyfastv::kernels {

enum class gelu_kind { tanh, quick, erf };

// y may be x
using gelu_function = void (*)(gelu_kind kind, const float * x, float * y, int64_t n);

} // namespace pyfastv::kernels
