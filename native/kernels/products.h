#pragma once

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#else
#include <stdbool.h>
#endif

struct ggml_compute_params;

// Call sites in ggml's CPU backend (third_party/patches). The products of quantized weights with 8-bit activations.
// PYFASTV_KERNELS=stock in the environment: none of it.

// in ggml_compute_forward_mul_mat() and ggml_compute_forward_mul_mat_id(): computes it, or says no
bool pyfastv_mul_mat(const struct ggml_compute_params * params, struct ggml_tensor * dst);

// in ggml_graph_plan(): bytes of work memory; 0: not ours
size_t pyfastv_mul_mat_work_size(int n_threads, const struct ggml_tensor * dst);

// is this node a product that our kernels compute?
bool pyfastv_has_kernel(const struct ggml_tensor * dst);

#ifdef __cplusplus
}
#endif
