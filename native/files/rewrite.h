#pragma once

#include "ggml.h"

#include <cstdint>
#include <functional>
#include <map>
#include <string>

namespace pyfastv {

// What becomes of a matrix, or of a bias, which is a row.
struct new_tensor {
    ggml_type type;
    int64_t   n_columns; // at least as many as there are;
    int64_t   n_rows;    // what is added is zeros
};

struct rewrite_plan {
    std::map<std::string, new_tensor> tensors; // by name; all others are copied
    std::map<std::string, uint32_t>   keys;    // metadata that is set; all other is copied
};

// Called with the bytes of tensors that are done, and all of them; false: stop.
using rewrite_progress = std::function<bool(uint64_t, uint64_t)>;

// Write the GGUF file `source` as `target`, with some tensors of another type, or larger. At most a few MiB of a tensor are
// in memory at a time. `n_threads` 0: usable_cores(). The alignment is GGUF's default, whatever the source's was.
//
// Throws error(model), which names the source (it cannot be read, is damaged, or a tensor of the plan is none that could be
// rewritten), std::system_error (the target cannot be written), interrupted. What is in the target then is of no use.
void rewrite_gguf(const std::string & source, const std::string & target, const rewrite_plan & plan, int n_threads, const rewrite_progress & progress);

} // namespace pyfastv
