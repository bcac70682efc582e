#include "vision/encoder_check.h"

#include "vision/encoders.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <set>
#include <sstream>

namespace pyfastv {
namespace {

const std::string vision = "clip.vision.";

[[noreturn]] void refuse_key(const std::string & key, int64_t is, const std::string & why) {
    refuse("key " + key + " is " + std::to_string(is) + ", " + why);
}

bool starts_with(const std::string & text, const std::string & with) {
    return text.rfind(with, 0) == 0;
}

bool ends_with(const std::string & text, const std::string & with) {
    return text.size() >= with.size() && text.compare(text.size() - with.size(), with.size(), with) == 0;
}

bool can_be(ggml_type type, tensor_use use) {
    switch (use) {
        case tensor_use::add:       return type == GGML_TYPE_F32;
        case tensor_use::convolve:  return type == GGML_TYPE_F32 || type == GGML_TYPE_F16;
        case tensor_use::transpose: return type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16;
        case tensor_use::multiply:
        case tensor_use::look_up:   break;
    }
    return is_weight_type(type);
}

std::string what_can_be(tensor_use use) {
    switch (use) {
        case tensor_use::add:       return "f32";
        case tensor_use::convolve:  return "f32 or f16";
        case tensor_use::transpose: return "f32, f16 or bf16";
        default:                    return "a type of weights";
    }
}

// One encoder's numbers (encoders.h), and how its tensors compare with them.
class encoder {
public:
    encoder(const file_header & header, const encoder_rule & rule, const file_limits & limits) : header(header), rule(rule) {
        number['E'] = positive(vision + "embedding_length");
        number['H'] = positive(vision + "attention.head_count");
        number['P'] = positive(vision + "patch_size");
        number['V'] = positive(vision + "projection_dim");
        number['M'] = rule.merge_key.empty() ? 1 : value(rule.merge_key, rule.merge_default);
        number['S'] = number['E']*feature_layers();
        number['D'] = value(vision + "attention.head_dim", 0);

        check_heads();
        check_merge();
        check_tiles(limits);
        check_size(limits);
        for (const auto & key : rule.keys) {
            positive(key);
        }
    }

    void check() {
        one({ "v.patch_embd.weight", "P P 3 E", tensor_use::convolve });
        for (const char * name : { "v.pre_ln.weight", "v.post_ln.weight" }) {
            one({ name, "E", tensor_use::add, false });
        }
        may_be("v.class_embd", rule.cls);
        may_be("v.patch_embd.bias", rule.patch_bias);
        check_places();
        for (int64_t il = 0; il < n_layer(); ++il) {
            check_layer(il);
        }
        check_layers_alike();
        for (const auto & tensor : rule.tensors) {
            if (starts_with(tensor.name, "v.deepstack.N.")) {
                check_deepstack(tensor);
            } else {
                one(tensor);
            }
            if (tensor.if_merging && number['M'] != 1 && !header.tensor(tensor.name)) {
                refuse("tensor " + tensor.name + " is missing, but " + rule.merge_key + " is " + std::to_string(number['M']));
            }
        }
        if (header.tensor("mm.patch_merger.weight")) {
            one({ "mm.input_norm.weight", "E", tensor_use::add });
        }
        if (rule.made == tokens::resampled) {
            check_resampler();
        }
        check_biases();
    }

private:
    const file_header &        header;
    const encoder_rule &       rule;
    std::map<char, int64_t>    number;
    std::map<char, std::string> number_from; // the tensor that gave a lower-case one

    int64_t value(const std::string & name, int64_t otherwise) const {
        const auto * found = header.key(name);
        return found && !found->numbers.empty() ? (int64_t) found->numbers[0] : otherwise;
    }

    int64_t positive(const std::string & name) const {
        const int64_t res = value(name, 0);
        if (res < 1) {
            refuse("key " + name + (header.key(name) ? " is " + std::to_string(res) + ", not at least 1" : " is missing"));
        }
        return res;
    }

    int64_t n_layer() const { return positive(vision + "block_count"); }

    // patches of a side
    int64_t side() const {
        const int64_t size = positive(vision + "image_size");
        if (size < number.at('P')) {
            refuse_key(vision + "image_size", size, "less than clip.vision.patch_size, " + std::to_string(number.at('P')));
        }
        return size/number.at('P');
    }

    // how many layers' outputs the projector reads
    int64_t feature_layers() const {
        const auto * layers = header.key(vision + "feature_layer");
        if (!layers || layers->numbers.empty() || rule.read == features::last_layer) {
            return 1;
        }
        std::set<double> res;
        for (const double il : layers->numbers) {
            if (il > (double) n_layer()) {
                refuse_key(vision + "feature_layer", (int64_t) il, "more than clip.vision.block_count, " + std::to_string(n_layer()));
            }
            if (il >= 0) {
                res.insert(il);
            }
        }
        return std::max<int64_t>(1, res.size());
    }

    void check_heads() {
        const int64_t n_kv = value(vision + "attention.head_count_kv", number['H']);
        if (number['D'] == 0) {
            if (number['E'] % number['H'] != 0) {
                refuse_key(vision + "attention.head_count", number['H'], "which does not divide clip.vision.embedding_length, " +
                        std::to_string(number['E']));
            }
            number['D'] = number['E']/number['H'];
        }
        if (n_kv < 1 || number['H'] % n_kv != 0 || (n_kv != number['H'] && rule.fused_attention != presence::optional)) {
            refuse_key(vision + "attention.head_count_kv", n_kv, "which does not go with clip.vision.attention.head_count, " +
                    std::to_string(number['H']));
        }
        if (number['D'] % rule.head_multiple != 0) {
            refuse_key(vision + "attention.head_count", number['H'], "which makes heads of " + std::to_string(number['D']) +
                    ": their size must be a multiple of " + std::to_string(rule.head_multiple));
        }
        number['A'] = number['D']*number['H'];
        number['K'] = number['D']*n_kv;
    }

    void check_merge() const {
        const int64_t merge = number.at('M');
        if (rule.merge_key.empty()) {
            return;
        }
        if (merge < rule.merge_min && !header.key(rule.merge_key)) {
            refuse("key " + rule.merge_key + " is missing");
        }
        if (merge < rule.merge_min || merge > rule.merge_max) {
            refuse_key(rule.merge_key, merge, "not " + std::to_string(rule.merge_min) +
                    (rule.merge_max > rule.merge_min ? " to " + std::to_string(rule.merge_max) : ""));
        }
        if (rule.places == place_table::grid && side() % merge != 0) {
            refuse_key(rule.merge_key, merge, "which does not divide the " + std::to_string(side()) +
                    " patches of a side (clip.vision.image_size)");
        }
    }

    // slices of a picture
    void check_tiles(const file_limits & limits) const {
        const std::string edge_key = vision + "preproc_image_size", least_key = vision + "preproc_min_tiles";

        const int64_t size = value(vision + "image_size", 0);
        const int64_t edge = value(edge_key, 0);
        if (rule.slices == slicing::edge && edge != 0 && (edge < size || (double) edge*edge > (double) size*size*limits.tiles)) {
            refuse_key(edge_key, edge, "not clip.vision.image_size, " + std::to_string(size) + ", or more, of at most " +
                    std::to_string(limits.tiles) + " slices (PYFASTV_LIMITS=tiles=... allows more)");
        }
        const int64_t most = value(vision + "preproc_max_tiles", 12), least = value(least_key, 1);
        if (rule.slices == slicing::tiles && (least < 1 || least > most)) {
            refuse_key(least_key, least, "not 1 to clip.vision.preproc_max_tiles, " + std::to_string(most));
        }
    }

    // of a picture, which is fitted to a number of tokens
    void check_size(const file_limits & limits) const {
        constexpr int64_t square = 512; // mtmd_image_preprocessor_lfm2::tile_size

        const std::string key   = vision + "patch_size";
        const int64_t     patch = number.at('P'), side = patch*number.at('M');
        const double      most  = std::min((double) limits.image_size*limits.image_size, (double) INT32_MAX);

        // an empty strip would be counted as patches
        if (rule.slices == slicing::squares && square % patch != 0) {
            refuse_key(key, patch, "which does not divide slices of " + std::to_string(square) + " pixels");
        }
        if ((double) rule.most_tokens*side*side > most) {
            refuse_key(key, patch, "and a token is of " + std::to_string(number.at('M')) + " patches a side (" + rule.merge_key +
                    "): " + std::to_string(rule.most_tokens) + " of them are more pixels than a picture may have (PYFASTV_LIMITS="
                    "image_size=... allows more)");
        }
    }

    // a dimension of a rule: 0 for a letter that has no value yet
    int64_t product(const std::string & text, char & unknown) const {
        int64_t res = 1;
        std::istringstream factors(text);
        for (std::string factor; std::getline(factors, factor, '*'); ) {
            const char letter = factor[0];
            if (letter >= '0' && letter <= '9') {
                res *= std::stoll(factor);
            } else if (const auto it = number.find(letter); it != number.end()) {
                res *= it->second;
            } else {
                unknown = letter;
                return 0;
            }
        }
        return res;
    }

    void one(const tensor_rule & expected) {
        const auto * tensor = header.tensor(expected.name);
        if (!tensor) {
            if (expected.required) {
                refuse("tensor " + expected.name + " is missing");
            }
            return;
        }
        if (!can_be(tensor->type, expected.use)) {
            refuse("tensor " + expected.name + " is of type " + ggml_type_name(tensor->type) + ", expected " + what_can_be(expected.use));
        }
        std::istringstream dims(expected.dims);
        std::string        shape;
        size_t             d = 0;
        bool               right = true;
        for (std::string dim; dims >> dim; ++d) {
            const int64_t      is = tensor->ne[d];
            bool               fits = false;
            std::string        wanted;
            std::istringstream alternatives(dim);
            for (std::string alternative; std::getline(alternatives, alternative, '|'); ) {
                char          unknown = 0;
                const int64_t n = product(alternative, unknown);
                if (unknown) {
                    number[unknown]      = is;
                    number_from[unknown] = expected.name;
                }
                fits   = fits || unknown || n == is;
                wanted += (wanted.empty() ? "" : " or ") + std::to_string(unknown ? is : n);
                if (!fits && number_from.count(alternative[0])) {
                    wanted += " (as in " + number_from[alternative[0]] + ")";
                }
            }
            right = right && fits;
            shape += (shape.empty() ? "" : " x ") + wanted;
        }
        right = right && std::all_of(tensor->ne.begin() + (long) d, tensor->ne.end(), [](int64_t n) { return n == 1; });
        if (!right) {
            refuse("tensor " + expected.name + " is " + shape_text(*tensor) + ", expected " + shape);
        }
    }

    void may_be(const std::string & name, presence how) {
        if (how == presence::ignored) {
            return;
        }
        if (how == presence::never && header.tensor(name)) {
            refuse("tensor " + name + " is there, which the projector " + rule.projector + " does not have");
        }
        one({ name, "E", tensor_use::add, how == presence::required });
    }

    void check_places() {
        const std::string name = "v.position_embd.weight";
        switch (rule.places) {
            case place_table::none:
                return;
            case place_table::grid:
                number['R'] = side()*side() + (rule.cls != presence::ignored && header.tensor("v.class_embd") ? 1 : 0);
                break;
            case place_table::square: {
                const auto *  tensor = header.tensor(name);
                const int64_t root   = tensor ? std::llround(std::sqrt((double) tensor->ne[1])) : 0;
                number['R'] = root*root;
            } break;
            case place_table::bucket:
                number['R'] = 70*70;
                break;
            case place_table::axes: {
                // at least for a square picture; others are looked at when they come
                const auto *  tensor = header.tensor(name);
                const int64_t least  = (int64_t) std::sqrt((double) rule.most_tokens)*number['M'];
                number['R'] = std::max(least, tensor ? tensor->ne[1] : 0);
                one({ name, "E R 2", rule.places_use });
            } return;
        }
        one({ name, "E R", rule.places_use });
    }

    void check_layer(int64_t il) {
        const std::string block = "v.blk." + std::to_string(il) + ".";
        const bool        fused = header.tensor(block + "attn_qkv.weight");

        const auto * down    = header.tensor(block + "ffn_down.weight");
        const bool   swapped = rule.old_names && down && down->ne[0] == number['E'];

        number.erase('f');
        for (auto expected : layer_rules()) {
            if (expected.name == "attn_qkv.weight") {
                expected.required = rule.fused_attention == presence::required;
            } else if (starts_with(expected.name, "attn_") && expected.required && expected.name != "attn_out.weight") {
                expected.required = !fused && rule.fused_attention != presence::required;
            }
            if (swapped && (expected.name == "ffn_up.weight" || expected.name == "ffn_down.weight")) {
                expected.dims = expected.name == "ffn_up.weight" ? "f E" : "E f";
            }
            expected.name = block + expected.name;
            one(expected);
        }
        if (fused && rule.fused_attention == presence::never) {
            refuse("tensor " + block + "attn_qkv.weight is there, which the projector " + rule.projector + " does not have");
        }
        if (fused && (number['A'] != number['K'] || (rule.fused_attention == presence::required && number['A'] != number['E']))) {
            refuse("tensor " + block + "attn_qkv.weight does not go with clip.vision.attention.head_count and its siblings");
        }
        if (rule.attention_bias) {
            for (const char * matrix : { "attn_q", "attn_k", "attn_v", "attn_qkv" }) {
                one({ block + matrix + ".bias", std::string(matrix) == "attn_qkv" ? "3*A" : "A", tensor_use::add,
                        (rule.fused_attention == presence::required) == (std::string(matrix) == "attn_qkv") });
            }
        }
    }

    // A layer without a norm or a bias that others have still computes something.
    void check_layers_alike() const {
        std::set<std::string> kinds;
        for (const auto & [name, tensor] : header.tensors) {
            const size_t at = name.find('.', strlen("v.blk."));
            if (starts_with(name, "v.blk.") && at != std::string::npos && std::atoll(name.c_str() + strlen("v.blk.")) < n_layer()) {
                kinds.insert(name.substr(at));
            }
        }
        for (const auto & kind : kinds) {
            for (int64_t il = 0; il < n_layer(); ++il) {
                const std::string name = "v.blk." + std::to_string(il) + kind;
                if (!header.tensor(name)) {
                    refuse("tensor " + name + " is missing, which other layers have");
                }
            }
        }
    }

    // tensors of a layer whose output goes to the language model: all of them or none
    void check_deepstack(tensor_rule expected) {
        const std::string prefix = "v.deepstack.";
        const std::string rest   = expected.name.substr(prefix.size() + 1);
        for (int64_t il = 0; il < n_layer(); ++il) {
            const std::string layer = prefix + std::to_string(il);
            const bool any = std::any_of(header.tensors.begin(), header.tensors.end(), [&](const auto & entry) {
                return starts_with(entry.first, layer + ".");
            });
            if (any) {
                number.erase('g');
                if (ends_with(rest, "fc2.weight")) {
                    number['g'] = header.tensor(layer + ".fc1.weight")->ne[1];
                }
                one({ layer + rest, expected.dims, expected.use });
            }
        }
    }

    void check_resampler() const {
        constexpr int64_t head = 128; // models/minicpmv.cpp

        const auto *  query   = header.tensor("resampler.query");
        const int64_t version = value("clip.minicpmv_version", 0);
        const bool    newer   = (version >= 3 && version <= 6) || version == 100045;
        int64_t       n       = value("clip.minicpmv_query_num", 0);

        if (n == 0) {
            n = newer ? 64 : 96;
        }
        if (query->ne[1] != n) {
            refuse("tensor resampler.query has " + std::to_string(query->ne[1]) + " rows, but clip.minicpmv_query_num is " + std::to_string(n));
        }
        if (query->ne[0] % head != 0) {
            refuse("tensor resampler.query has rows of " + std::to_string(query->ne[0]) + ", no multiple of " + std::to_string(head));
        }
    }

    // of norms, matrices and convolutions: a number for every output
    void check_biases() {
        for (const auto & [name, tensor] : header.tensors) {
            if (!ends_with(name, ".bias") || !(starts_with(name, "v.") || starts_with(name, "mm.") || starts_with(name, "resampler."))) {
                continue;
            }
            const auto weight_name = name.substr(0, name.size() - strlen("bias")) + "weight";
            const auto * weight = header.tensor(weight_name);
            if (!weight) {
                if (name == "v.pre_ln.bias" || name == "v.post_ln.bias") {
                    refuse("tensor " + weight_name + " is missing, but its bias is there");
                }
                continue; // required, or not read either
            }
            number['b'] = weight->ne[weight->n_dims - 1];
            one({ name, "b", tensor_use::add });
        }
    }
};

} // namespace

void check_encoder(const file_header & header, const file_limits & limits) {
    const auto * own    = header.key("clip.projector_type");
    const auto * mixed  = header.key("clip.vision.projector_type");
    const auto * name   = own && !own->text.empty() ? own : mixed;
    if (!name || name->text.empty()) {
        refuse("key clip.projector_type is missing or empty");
    }
    if (const auto * rule = find_encoder(name->text, [&](const char * tensor) { return header.tensor(tensor) != nullptr; })) {
        encoder(header, *rule, limits).check();
    }
}

} // namespace pyfastv
