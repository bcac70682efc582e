#pragma once

// llama.cpp's own interfaces that stages speak: a memory is one of its memories (llama_memory_i), takes a batch apart into
// ubatches (llama_batch_allocr, llama_ubatch), is written to and read from states (llama_io_write_i, llama_io_read_i), and tells
// the log. They are seen through this header alone.

#include "llama-batch.h" // IWYU pragma: export
#include "llama-impl.h"  // IWYU pragma: export
#include "llama-io.h"    // IWYU pragma: export
#include "llama-memory.h" // IWYU pragma: export
