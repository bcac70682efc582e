#pragma once

#include "kernels/kernel.h"

namespace pyfastv::kernels {

// by PYFASTV_KERNELS, or the fastest of this CPU; null: llama.cpp's own
const cpu_kernels * chosen_kernels();

} // namespace pyfastv::kernels
