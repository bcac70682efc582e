#pragma once

#include "llama/memory/stage_cache.h"

#include "llama-kv-cache.h"

// One llama_kv_cache, of which every kind of memory has some.
namespace pyfastv {

kv_bytes bytes_in(const llama_kv_cache & kv);

stage_cache::cells cells_in(const llama_kv_cache & kv, llama_seq_id seq_id);

std::vector<llama_pos> positions_in(const llama_kv_cache & kv, size_t n);

void remove_in(llama_kv_cache & kv, llama_seq_id seq_id, const position & pos);

// throws std::runtime_error: this state is broken
void require_cells(bool fact);
void check_cells_in(const llama_kv_cache & kv);

void drop_in(llama_kv_cache & kv, llama_seq_id seq_id);

} // namespace pyfastv
