#pragma once

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#else
#include <stdbool.h>
#endif

struct ggml_compute_params;

// Call sites in ggml's CPU backend (third_party/patches), as those of products.h.

// in ggml_compute_forward(), of GGML_OP_FLASH_ATTN_EXT: computes it, or says no
bool pyfastv_flash_attn(const struct ggml_compute_params * params, struct ggml_tensor * dst);

// in ggml_graph_plan(): bytes of work memory; 0: not ours
size_t pyfastv_flash_attn_work_size(int n_threads, const struct ggml_tensor * dst);

#ifdef __cplusplus
}
#endif
