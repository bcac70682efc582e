#include "runner/gguf_file.h"

#include "runner/errors.h"
#include "runner/log.h"
#include "runner/model_file.h"

#include "ggml-cpp.h"
#include "gguf.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <utility>

namespace pyfastv {
namespace {

struct part {
    std::string      path;
    ggml_context_ptr tensors; // without data
    gguf_context_ptr header;
};

// a tensor's place in its file
struct source {
    const part * from;
    int64_t      id;
};

part open_part(const std::string & path) {
    check_header_file(path);

    const log_scope log(false);

    ggml_context *   tensors = nullptr;
    gguf_context_ptr header(gguf_init_from_file(path.c_str(), { /* no_alloc */ true, &tensors }));
    if (!header) {
        throw log.failure(error_kind::model, path, "cannot be read");
    }
    return { path, ggml_context_ptr(tensors), std::move(header) };
}

// of "blk.7.attn_q.weight": 7; -1 outside of the layers
int32_t layer_of(const std::string & name) {
    return name.rfind("blk.", 0) == 0 ? std::atoi(name.c_str() + 4) : -1;
}

void copy_metadata(gguf_context * out, const part & first, int32_t n_layers) {
    const auto * in = first.header.get();

    const int64_t arch_id = gguf_find_key(in, "general.architecture");
    if (arch_id < 0 || gguf_get_kv_type(in, arch_id) != GGUF_TYPE_STRING) {
        throw error(error_kind::model, first.path + ": is not a language model: it has no general.architecture");
    }
    const std::string prefix = std::string(gguf_get_val_str(in, arch_id)) + ".";
    const std::string key    = prefix + "block_count";

    const int64_t count_id = gguf_find_key(in, key.c_str());
    if (count_id < 0 || gguf_get_kv_type(in, count_id) != GGUF_TYPE_UINT32) {
        throw error(error_kind::model, first.path + ": is not a language model: it has no " + key);
    }
    const uint32_t n_all = gguf_get_val_u32(in, count_id);
    if (n_layers < 1 || (uint32_t) n_layers > n_all) {
        throw error(error_kind::model, first.path + ": has " + std::to_string(n_all) + " layers, not " + std::to_string(n_layers));
    }

    // one table has those of all layers
    const int64_t per_layer_id = gguf_find_key(in, (prefix + "embedding_length_per_layer_input").c_str());
    if ((uint32_t) n_layers < n_all && per_layer_id >= 0 && gguf_get_kv_type(in, per_layer_id) == GGUF_TYPE_UINT32 &&
            gguf_get_val_u32(in, per_layer_id) > 0) {
        throw error(error_kind::model, first.path + ": has per-layer embeddings: its first layers do not run alone");
    }

    gguf_set_kv(out, in);
    gguf_set_val_u32(out, key.c_str(), n_layers);
    for (const char * split : { "split.no", "split.count", "split.tensors.count" }) {
        gguf_remove_key(out, split);
    }

    // values of every layer
    for (int64_t i = 0; i < gguf_get_n_kv(in); ++i) {
        const std::string name = gguf_get_key(in, i);
        if (name.rfind(prefix, 0) != 0 || gguf_get_kv_type(in, i) != GGUF_TYPE_ARRAY || gguf_get_arr_n(in, i) != n_all ||
                gguf_get_arr_type(in, i) == GGUF_TYPE_STRING) {
            continue;
        }
        gguf_set_arr_data(out, name.c_str(), gguf_get_arr_type(in, i), gguf_get_arr_data(in, i), n_layers);
    }
}

void append(std::ofstream & to, std::ifstream & from, size_t offset, size_t size) {
    std::vector<char> buffer(std::min<size_t>(size, 4 << 20));

    from.seekg((std::streamoff) offset);
    while (size > 0 && from && to) {
        const size_t n = std::min(size, buffer.size());
        from.read(buffer.data(), (std::streamsize) n);
        to.write(buffer.data(), (std::streamsize) n);
        size -= n;
    }
}

} // namespace

void write_excerpt(const std::vector<std::string> & parts, int32_t n_layers, const std::string & out) {
    if (parts.empty()) {
        throw error(error_kind::model, "there is no file to read");
    }

    std::vector<part> files;
    for (const auto & path : parts) {
        files.push_back(open_part(path));
    }

    const gguf_context_ptr header(gguf_init_empty());
    copy_metadata(header.get(), files[0], n_layers);

    std::vector<source> sources;
    for (const auto & file : files) {
        for (int64_t id = 0; id < gguf_get_n_tensors(file.header.get()); ++id) {
            const char * name = gguf_get_tensor_name(file.header.get(), id);
            if (layer_of(name) < n_layers) {
                gguf_add_tensor(header.get(), ggml_get_tensor(file.tensors.get(), name));
                sources.push_back({ &file, id });
            }
        }
    }

    if (!gguf_write_to_file(header.get(), out.c_str(), /* only_meta */ true)) {
        throw error(error_kind::model, out + ": cannot be written");
    }

    std::ofstream to(out, std::ios::binary | std::ios::app);
    for (const auto & source : sources) {
        const auto * in = source.from->header.get();

        std::ifstream from(source.from->path, std::ios::binary);
        const size_t  size = gguf_get_tensor_size(in, source.id);
        append(to, from, gguf_get_data_offset(in) + gguf_get_tensor_offset(in, source.id), size);
        if (!from) {
            throw error(error_kind::model, source.from->path + ": is truncated: " + gguf_get_tensor_name(in, source.id) + " is not there");
        }
        const size_t padded = GGML_PAD(size, gguf_get_alignment(header.get()));
        to.write(std::string(padded - size, '\0').data(), (std::streamsize) (padded - size));
    }
    to.close();
    if (!to) {
        throw error(error_kind::model, out + ": cannot be written: is the disk full?");
    }
}

} // namespace pyfastv
