#pragma once

#include "ggml-backend.h"

// Where llama.cpp puts the weights that our kernels multiply with: as they lie in the file, in huge pages if the system has
// them. Null: there are no kernels.
ggml_backend_buffer_type_t pyfastv_weights_buffer_type();
