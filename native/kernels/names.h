#pragma once

#include "ggml-backend.h"

#ifdef __cplusplus
extern "C" {
#endif

// the kernels in use: "avx512", "avxvnni", "avx2"; null: llama.cpp's own
GGML_BACKEND_API const char * pyfastv_kernels_name(void);

// all that this CPU runs, the fastest first; null: no more
GGML_BACKEND_API const char * pyfastv_kernels_at(int i);

#ifdef __cplusplus
}
#endif
