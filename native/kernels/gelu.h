#pragma once

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#else
#include <stdbool.h>
#endif

struct ggml_compute_params;

// Call site in ggml's CPU backend (third_party/patches), as those of products.h: in ggml_compute_forward(), of GGML_OP_UNARY.
// Computes it, or says no.
bool pyfastv_unary(const struct ggml_compute_params * params, struct ggml_tensor * dst);

#ifdef __cplusplus
}
#endif
