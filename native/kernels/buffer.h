#pragma once

#include "ggml-backend.h"

// Where llama.cpp puts the weights that our kernels multiply with: packed (layout.h), in huge pages if the system has them.
// What is read back is what was written. Null: there are no kernels.
ggml_backend_buffer_type_t pyfastv_weights_buffer_type();

// does this tensor lie, or will it lie, packed in such a buffer?
bool pyfastv_is_packed(const ggml_tensor * t);
