#pragma once

#include "llama/memory/stage_cache.h"

#include <functional>
#include <memory>
#include <optional>

// What llama/memory/stage_cache.cpp asks of the file of each kind.
namespace pyfastv {

// the layers of a part, and what it is made with
struct part_of_model {
    const llama_model &          model;
    const llama_cparams &        cparams;
    std::function<bool(int32_t)> has_layer;
    uint32_t                     n_cells;
};

std::unique_ptr<stage_cache> make_kv    (const part_of_model & part, const cache_layout & layout);
std::unique_ptr<stage_cache> make_iswa  (const part_of_model & part, const cache_layout & layout);
std::unique_ptr<stage_cache> make_hybrid(const part_of_model & part, const cache_layout & layout);

// of a memory that is of the kind; nullopt: it is not
std::optional<cache_layout> layout_of_kv    (const llama_memory_i & memory, const llama_model & model);
std::optional<cache_layout> layout_of_iswa  (const llama_memory_i & memory, const llama_model & model);
std::optional<cache_layout> layout_of_hybrid(const llama_memory_i & memory, const llama_model & model);

// of a memory of the kind, or of one that is derived from it; nullopt: it is not
std::optional<kv_bytes> bytes_of_kv    (const llama_memory_i & memory);
std::optional<kv_bytes> bytes_of_iswa  (const llama_memory_i & memory);
std::optional<kv_bytes> bytes_of_hybrid(const llama_memory_i & memory);

} // namespace pyfastv
