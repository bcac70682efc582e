#include "files/model.h"

#include "files/header.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>

namespace pyfastv {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

// llama.cpp's LLAMA_MAX_LAYERS, which it asserts
constexpr double max_layers = 512;

bool ends_with(const std::string & text, const std::string & with) {
    return text.size() >= with.size() && text.compare(text.size() - with.size(), with.size(), with) == 0;
}

// What holds for these keys of every architecture, behind its name. Those of arrays hold for each element.
void check_ranges(const file_header & header, const std::string & arch, const file_limits & limits) {
    const std::string prefix = arch + ".";

    check_range(header, prefix + "block_count", 1, std::min<double>(limits.layers, max_layers));
    check_range(header, prefix + "context_length", 1, limits.context, "context");
    check_range(header, prefix + "vocab_size", 1, limits.vocabulary, "vocabulary");
    check_range(header, prefix + "embedding_length", 1, limits.width, "width");
    check_range(header, prefix + "feed_forward_length", 0, 64.0*limits.width, "width");
    for (const char * key : { "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
                              "rope.dimension_count", "expert_count", "expert_used_count" }) {
        check_range(header, prefix + key, 0, limits.width, "width");
    }
    for (const char * key : { "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon", "attention.group_norm_epsilon" }) {
        check_range(header, prefix + key, 0, 1);
    }
    // angles are positions times powers of it
    check_range(header, prefix + "rope.freq_base", 1e-3, infinity);
    check_range(header, prefix + "rope.freq_base_swa", 1e-3, infinity);
    check_range(header, prefix + "rope.scaling.factor", 0, infinity); // 0: none
}

void check_vocabulary(const file_header & header, const file_limits & limits) {
    const auto * tokens = header.key("tokenizer.ggml.tokens");
    if (!tokens) {
        return;
    }
    if (!tokens->is_array || tokens->type != GGUF_TYPE_STRING || tokens->n == 0) {
        refuse("key tokenizer.ggml.tokens is not an array of strings, or is empty");
    }
    if (tokens->n > limits.vocabulary) {
        refuse("key tokenizer.ggml.tokens has " + std::to_string(tokens->n) + " tokens, more than " + std::to_string(limits.vocabulary) +
                " (PYFASTV_LIMITS=vocabulary=... allows more)");
    }
    for (const char * name : { "tokenizer.ggml.scores", "tokenizer.ggml.token_type" }) {
        const auto * value = header.key(name);
        if (value && (!value->is_array || value->n < tokens->n)) {
            refuse("key " + std::string(name) + " has " + std::to_string(value->n) + " values, but there are " + std::to_string(tokens->n) + " tokens");
        }
    }
}

void check_texts(const file_header & header) {
    for (const auto & [name, value] : header.keys) {
        const bool is_template = name.rfind("tokenizer.chat_template", 0) == 0;
        if (!is_template || value.is_array) {
            continue;
        }
        if (value.type != GGUF_TYPE_STRING) {
            refuse("key " + name + " is of type " + gguf_type_name(value.type) + ", expected " + gguf_type_name(GGUF_TYPE_STRING));
        }
        if (!is_utf8(value.text)) {
            refuse("key " + name + " is not UTF-8");
        }
    }
}

// of a key that has one; 0: it is not there
double number_of(const file_header & header, const std::string & name) {
    const auto * value = header.key(name);
    return value && !value->is_array && !value->numbers.empty() ? value->numbers[0] : 0;
}

// Of heads that are turned by positions in several directions.
void check_sections(const file_header & header, const std::string & arch) {
    const std::string name     = arch + ".rope.dimension_sections";
    const auto *      sections = header.key(name);
    if (!sections) {
        return;
    }
    check_range(header, name, 0, 65536);

    const auto number = [&](const char * key) { return number_of(header, arch + "." + key); };
    const double sum  = std::accumulate(sections->numbers.begin(), sections->numbers.end(), 0.0);
    const double head = number("attention.key_length") > 0 ? number("attention.key_length") :
                        number("attention.head_count") > 0 ? number("embedding_length")/number("attention.head_count") : infinity;
    // other architectures take zeros for "not turned so"
    if (sum > head || (sum == 0 && arch.rfind("qwen", 0) == 0)) {
        refuse("key " + name + " adds up to " + value_text(sum) + ", not 1 to the size of a head, " + value_text(head));
    }
}

// Of gated delta nets: llama.cpp takes the first for granted, and divides by the others.
void check_delta_net(const file_header & header, const std::string & arch) {
    check_range(header, arch + ".full_attention_interval", 1, max_layers);
    if (arch != "qwen35" && arch != "qwen35moe" && arch != "qwen3next") {
        return;
    }
    const auto number = [&](const char * key) { return number_of(header, arch + ".ssm." + key); };
    const double heads = number("time_step_rank");
    const double keys  = number("group_count");
    if (number("inner_size") != number("state_size")*heads) {
        refuse("key " + arch + ".ssm.inner_size is " + value_text(number("inner_size")) + ", not " +
                value_text(number("state_size")*heads) + ", ssm.state_size times ssm.time_step_rank");
    }
    if (!(keys > 0 && heads > 0 && std::fmod(heads, keys) == 0)) {
        refuse("key " + arch + ".ssm.group_count is " + value_text(keys) + ", which does not divide ssm.time_step_rank, " +
                value_text(heads));
    }
}

// Of Gemma 4: layers without keys and values of their own read those of the last two that have some. llama.cpp takes for granted that
// the one has a window and the other has none, as they need it.
void check_shared_caches(const file_header & header, const std::string & arch) {
    if (arch != "gemma4") {
        return;
    }
    const double n_layer  = number_of(header, arch + ".block_count");
    const double n_shared = number_of(header, arch + ".attention.shared_kv_layers");
    check_range(header, arch + ".attention.shared_kv_layers", 0, std::max(n_layer - 2, 0.0));

    const std::string name    = arch + ".attention.sliding_window_pattern";
    const auto *      pattern = header.key(name);
    if (!pattern || !pattern->is_array || pattern->numbers.size() != n_layer) {
        return;
    }
    const auto first_shared = pattern->numbers.end() - (ptrdiff_t) n_shared;
    for (const double window : { 0.0, 1.0 }) {
        const bool is_needed = std::find(first_shared, pattern->numbers.end(), window) != pattern->numbers.end();
        if (is_needed && *(first_shared - (window > 0 ? 2 : 1)) != window) {
            refuse("key " + name + " and attention.shared_kv_layers do not fit: layer " +
                    value_text(n_layer - n_shared - (window > 0 ? 2 : 1)) + " has no cache of the kind that later layers share");
        }
    }
}

// llama.cpp's converters and llama-quantize leave what is added to activations, or multiplied with them element by element, in
// f32, and what is multiplied as a matrix in a type of weights.
void check_tensor_types(const file_header & header) {
    for (const auto & [name, tensor] : header.tensors) {
        const bool vector = tensor.n_dims == 1 && (ends_with(name, "norm.weight") || ends_with(name, ".bias"));
        const bool matrix = ends_with(name, ".weight") && name.find("tid2eid") == std::string::npos; // a table of numbers
        if ((vector && tensor.type != GGML_TYPE_F32) || (matrix && !is_weight_type(tensor.type))) {
            refuse("tensor " + name + " is of type " + ggml_type_name(tensor.type) + ", expected " + (vector ? "f32" : "a type of weights"));
        }
    }
}

// some architectures take them together or apart, and miss neither
void check_attention(const file_header & header) {
    const std::string output = ".attn_output.weight";
    for (const auto & entry : header.tensors) {
        const std::string & name = entry.first;
        if (name.rfind("blk.", 0) != 0 || !ends_with(name, output)) {
            continue;
        }
        const std::string block = name.substr(0, name.size() - output.size());
        const std::string query = block + ".attn_q";
        bool found = false;
        for (auto it = header.tensors.lower_bound(query); it != header.tensors.end() && it->first.rfind(query, 0) == 0; ++it) {
            found = found || (ends_with(it->first, ".weight") && !ends_with(it->first, "norm.weight"));
        }
        if (!found) {
            refuse("tensor " + block + ".attn_qkv.weight is missing, and so is " + query + ".weight");
        }
    }
}

// where they are read in place
void check_alignment(const file_header & header) {
    for (const auto & [name, tensor] : header.tensors) {
        if (tensor.offset % GGUF_DEFAULT_ALIGNMENT != 0) {
            refuse("tensor " + name + " begins at byte " + std::to_string(tensor.offset) + ", no multiple of " +
                    std::to_string(GGUF_DEFAULT_ALIGNMENT) + " (key general.alignment)");
        }
    }
}

} // namespace

uint32_t check_model(const std::string & path) {
    const auto limits = file_limits::current();
    const auto header = file_header::read(path, limits);
    if (header.keys.empty()) {
        return 1;
    }

    const auto part = [&](const char * name) {
        const auto * value = header.key(name);
        return value && !value->numbers.empty() ? (uint32_t) value->numbers[0] : 0;
    };

    if (part("split.no") == 0) {
        const auto * arch = header.key("general.architecture");
        if (!arch || arch->text.empty()) {
            refuse("key general.architecture is missing or empty: it is not a language model");
        }
        check_finite(header, arch->text + ".");
        check_ranges(header, arch->text, limits);
        check_vocabulary(header, limits);
        check_texts(header);
        check_sections(header, arch->text);
        check_delta_net(header, arch->text);
        check_shared_caches(header, arch->text);
    }
    check_tensor_types(header);
    check_alignment(header);
    if (part("split.count") < 2) { // else they may be in another file
        check_attention(header);
    }
    check_beginnings(path, header);

    return std::max(1u, part("split.count"));
}

} // namespace pyfastv
