// A row an encoder: native/vision/encoders.h says what the columns mean. Where they come from: clip_model_loader of llama.cpp's
// tools/mtmd/clip.cpp, and the graph in tools/mtmd/models.

#include "vision/encoders.h"

#include <algorithm>
#include <cctype>

namespace pyfastv {
namespace {

using use = tensor_use;

constexpr auto never = presence::never, ignored = presence::ignored, optional = presence::optional, required = presence::required;

const char * const scale_factor = "clip.vision.projector.scale_factor";
const char * const merge_size   = "clip.vision.spatial_merge_size";

const std::vector<encoder_rule> encoders = {
    // models/llava.cpp
    { "mlp", place_table::grid, use::look_up, optional, optional, never, false, true, 1, "", 1, 1, 1, {}, {
        { "mm.0.weight", "S h" }, { "mm.0.bias", "h", use::add },
        { "mm.2.weight", "h w" }, { "mm.2.bias", "w", use::add },
    }, blocks_run::but_last, slicing::none, features::layers, tokens::in_places, cls_row::first, 0, skipping::patches },
    { "mlp_norm", place_table::grid, use::look_up, optional, optional, never, false, true, 1, "", 1, 1, 1, {}, {
        { "mm.0.weight", "S h" },           { "mm.0.bias", "h", use::add },
        { "mm.1.weight", "h", use::add },   { "mm.1.bias", "h", use::add },
        { "mm.3.weight", "h w" },           { "mm.3.bias", "w", use::add },
        { "mm.4.weight", "w", use::add },   { "mm.4.bias", "w", use::add },
    }, blocks_run::but_last, slicing::none, features::layers, tokens::in_places, cls_row::first, 0, skipping::patches },

    // models/qwen2vl.cpp
    { "qwen2vl_merger", place_table::none, use::add, never, never, never, true, true, 4, merge_size, 2, 2, 2, {}, {
        { "v.patch_embd.weight.1", "P P 3 E", use::convolve },
        { "mm.0.weight", "E*M*M h" }, { "mm.0.bias", "h", use::add },
        { "mm.2.weight", "h w" },     { "mm.2.bias", "w", use::add },
    }, blocks_run::all, slicing::none, features::last_layer, tokens::in_places, cls_row::first, 0, skipping::units },
    { "qwen2.5vl_merger", place_table::none, use::add, never, never, never, true, true, 4, merge_size, 2, 2, 2, {}, {
        { "v.patch_embd.weight.1", "P P 3 E", use::convolve },
        { "mm.0.weight", "E*M*M h" }, { "mm.0.bias", "h", use::add },
        { "mm.2.weight", "h V" },     { "mm.2.bias", "V", use::add },
    }, blocks_run::all, slicing::none, features::last_layer, tokens::in_places, cls_row::first, 0, skipping::units },

    // models/qwen3vl.cpp
    { "qwen3vl_merger", place_table::square, use::add, never, required, required, true, false, 4, merge_size, 2, 2, 2, {}, {
        { "v.patch_embd.weight.1", "P P 3 E", use::convolve },
        { "mm.0.weight", "E*M*M h" }, { "mm.0.bias", "h", use::add },
        { "mm.2.weight", "h w" },     { "mm.2.bias", "w", use::add },
        { "v.deepstack.N.norm.weight", "E*M*M", use::add, false },
        { "v.deepstack.N.fc1.weight", "E*M*M g", use::multiply, false },
        { "v.deepstack.N.fc2.weight", "g w", use::multiply, false },
    }, blocks_run::all, slicing::none, features::last_layer, tokens::in_places, cls_row::first, 0, skipping::units },

    // models/siglip.cpp
    { "gemma3", place_table::grid, use::add, ignored, optional, optional, false, true, 1, scale_factor, 4, 1, 64, {}, {
        { "mm.input_projection.weight", "w E", use::transpose },
        { "mm.soft_emb_norm.weight", "E", use::add },
    }, blocks_run::all, slicing::none, features::last_layer, tokens::in_places, cls_row::first, 0, skipping::patches },
    { "lfm2", place_table::square, use::add, ignored, optional, optional, false, false, 1, scale_factor, 1, 2, 64, {}, {
        { "mm.input_norm.weight", "E*M*M", use::add, false }, { "mm.input_norm.bias", "E*M*M", use::add, false },
        { "mm.1.weight", "E*M*M h" },                         { "mm.1.bias", "h", use::add },
        { "mm.2.weight", "h w" },                             { "mm.2.bias", "w", use::add },
    }, blocks_run::unknown, slicing::squares, features::last_layer, tokens::in_places, cls_row::first, 256 },
    { "janus_pro", place_table::grid, use::add, ignored, optional, optional, false, false, 1, "", 1, 1, 1, {}, {
        { "mm.0.weight", "E h" }, { "mm.0.bias", "h", use::add },
        { "mm.1.weight", "h w" }, { "mm.1.bias", "w", use::add },
    }, blocks_run::all, slicing::none, features::last_layer, tokens::in_places, cls_row::first, 0, skipping::patches },
    { "phi4", place_table::square, use::add, ignored, optional, optional, false, false, 1, "", 1, 1, 1,
      { "clip.vision.image_min_pixels", "clip.vision.image_max_pixels" }, {
        { "mm.0.weight", "E h" }, { "mm.0.bias", "h", use::add },
        { "mm.2.weight", "h w" }, { "mm.2.bias", "w", use::add },
    }, blocks_run::all, slicing::none, features::last_layer, tokens::in_places, cls_row::first, 0, skipping::patches },
    { "idefics3", place_table::grid, use::add, ignored, optional, optional, false, true, 1, scale_factor, 1, 2, 64, {}, {
        { "mm.model.fc.weight", "E*M*M w" },
    }, blocks_run::all, slicing::edge, features::last_layer, tokens::in_places, cls_row::first, 0, skipping::patches },

    // models/gemma4v.cpp
    { "gemma4v", place_table::axes, use::look_up, ignored, ignored, optional, false, false, 4, scale_factor, 3, 1, 64, {}, {
        { "mm.input_projection.weight", "E w" },
        { "v.std_bias", "E", use::add, false }, { "v.std_scale", "E", use::add, false },
    }, blocks_run::unknown, slicing::none, features::last_layer, tokens::in_places, cls_row::first, 1120 },

    // models/pixtral.cpp
    { "pixtral", place_table::none, use::add, ignored, optional, optional, false, false, 4, merge_size, 1, 1, 64, {}, {
        { "mm.patch_merger.weight", "E*M*M E", use::multiply, false, true },
        { "mm.input_norm.weight", "E", use::add, false },
        { "mm.1.weight", "E h" }, { "mm.1.bias", "h", use::add, false },
        { "mm.2.weight", "h w" }, { "mm.2.bias", "w", use::add, false },
        { "v.token_embd.img_break", "w", use::add },
    }, blocks_run::all },

    // models/internvl.cpp
    { "internvl", place_table::grid, use::add, required, optional, optional, false, false, 1, scale_factor, 1, 1, 64, {}, {
        { "mm.model.mlp.0.weight", "E*M*M", use::add }, { "mm.model.mlp.0.bias", "E*M*M", use::add },
        { "mm.model.mlp.1.weight", "E*M*M h" },         { "mm.model.mlp.1.bias", "h", use::add },
        { "mm.model.mlp.3.weight", "h w" },             { "mm.model.mlp.3.bias", "w", use::add },
    }, blocks_run::all, slicing::tiles, features::last_layer, tokens::in_places, cls_row::last, 0, skipping::patches },

    // models/minicpmv.cpp
    { "resampler", place_table::bucket, use::look_up, never, optional, optional, false, true, 1, "", 1, 1, 1, {}, {
        { "resampler.query", "w q", use::add },
        { "resampler.kv.weight", "E w" },
        { "resampler.attn.q.weight", "w w" },   { "resampler.attn.q.bias", "w", use::add },
        { "resampler.attn.k.weight", "w w" },   { "resampler.attn.k.bias", "w", use::add },
        { "resampler.attn.v.weight", "w w" },   { "resampler.attn.v.bias", "w", use::add },
        { "resampler.attn.out.weight", "w w" }, { "resampler.attn.out.bias", "w", use::add },
        { "resampler.ln_q.weight", "w", use::add },    { "resampler.ln_q.bias", "w", use::add },
        { "resampler.ln_kv.weight", "w", use::add },   { "resampler.ln_kv.bias", "w", use::add },
        { "resampler.ln_post.weight", "w", use::add }, { "resampler.ln_post.bias", "w", use::add },
        { "resampler.proj.weight", "w w" },
    }, blocks_run::unknown, slicing::none, features::last_layer, tokens::resampled },
};

// what encoders and projectors without a row multiply with (clip_graph::build_mm)
const std::vector<std::string> other_matrices = {
    "v.deepstack.N.fc1.weight", "v.deepstack.N.fc2.weight",
    "mm.N.weight", "mm.up.weight", "mm.gate.weight", "mm.down.weight",
    "mm.patch_merger.weight", "mm.model.fc.weight", "mm.model.mlp.N.weight",
    "resampler.kv.weight", "resampler.proj.weight",
    "resampler.attn.q.weight", "resampler.attn.k.weight", "resampler.attn.v.weight", "resampler.attn.out.weight",
};

// N in a pattern is any number
bool is_like(const std::string & name, const std::string & pattern) {
    size_t at = 0;
    for (const char c : pattern) {
        if (c != 'N') {
            if (at == name.size() || name[at++] != c) {
                return false;
            }
            continue;
        }
        const size_t first = at;
        while (at < name.size() && isdigit((unsigned char) name[at])) {
            at++;
        }
        if (at == first) {
            return false;
        }
    }
    return at == name.size();
}

template <typename F>
std::vector<std::string> those(F && have) {
    std::vector<std::string> res;
    for (const auto & encoder : encoders) {
        if (have(encoder)) {
            res.push_back(encoder.projector);
        }
    }
    return res;
}

} // namespace

const encoder_rule * find_encoder(const std::string & projector) {
    for (const auto & encoder : encoders) {
        if (encoder.projector == projector) {
            return &encoder;
        }
    }
    return nullptr;
}

const encoder_rule * find_encoder(const std::string & projector, const std::function<bool(const char *)> & has) {
    const bool yi = projector == "mlp" && has("mm.3.weight");
    return find_encoder(yi ? "mlp_norm" : projector);
}

bool is_matrix(const encoder_rule * rule, const std::string & tensor) {
    const auto is = [&](const tensor_rule & t, const std::string & prefix) {
        return t.use == tensor_use::multiply && is_like(tensor, prefix + t.name);
    };
    const auto & layers = layer_rules();
    if (std::any_of(layers.begin(), layers.end(), [&](const auto & t) { return is(t, "v.blk.N."); })) {
        return true;
    }
    if (!rule) {
        return std::any_of(other_matrices.begin(), other_matrices.end(), [&](const auto & name) { return is_like(tensor, name); });
    }
    return std::any_of(rule->tensors.begin(), rule->tensors.end(), [&](const auto & t) { return is(t, ""); });
}

std::vector<std::string> encoders_that_merge() {
    return those([](const encoder_rule & encoder) { return encoder.merges(); });
}

std::vector<std::string> encoders_that_skip() {
    return those([](const encoder_rule & encoder) { return encoder.skips != skipping::never; });
}

const std::vector<tensor_rule> & layer_rules() {
    static const std::vector<tensor_rule> rules = {
        { "ln1.weight", "E", use::add },
        { "ln2.weight", "E", use::add },
        { "attn_q.weight", "E A" },
        { "attn_k.weight", "E K" },
        { "attn_v.weight", "E K" },
        { "attn_qkv.weight", "E 3*A" },
        { "attn_out.weight", "A E" },
        { "attn_q_norm.weight", "D|A", use::add, false },
        { "attn_k_norm.weight", "D|K", use::add, false },
        { "ls1.weight", "E", use::add, false },
        { "ls2.weight", "E", use::add, false },
        { "attn_post_norm.weight", "E", use::add, false },
        { "ffn_post_norm.weight", "E", use::add, false },
        { "ffn_up.weight", "E f" },
        { "ffn_gate.weight", "E f", use::multiply, false },
        { "ffn_down.weight", "f E" },
    };
    return rules;
}

} // namespace pyfastv
