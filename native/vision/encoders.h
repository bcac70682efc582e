#pragma once

#include <functional>
#include <string>
#include <vector>

namespace pyfastv {

// What may be done with a tensor, which says what types it can have.
enum class tensor_use {
    multiply,  // the left side of a product: any type of weights
    add,       // added to or multiplied with f32 element by element, or concatenated to it: f32
    convolve,  // f32 or f16
    transpose, // f32, f16 or bf16
    look_up,   // rows are taken: any type of weights
};

// A tensor's shape in terms of the header. `dims`: rows first; numbers, products and alternatives ("3", "E*M*M", "D|A") of
//   E width, H heads, D head, A all heads, K all heads of keys and values, P patch, M patches that are merged a side,
//   S numbers of a patch that enter the projector (of several layers, if the header says so), V the header's projection_dim;
// lower case: whatever it is in the first tensor that has it.
struct tensor_rule {
    std::string name;
    std::string dims;
    tensor_use  use      = tensor_use::multiply;
    bool        required = true;
    bool        if_merging = false; // required if M is not 1
};

enum class place_table {
    none,   // positions are not looked up
    grid,   // a row for every patch of a picture of image_size, and for CLS if there is one
    square, // stretched to the picture: any square number of rows
    bucket, // 70 x 70 rows for a picture of any size
    axes,   // two tables, of columns and of rows: one for every patch of the picture's longer side
};

enum class presence { never, ignored, optional, required };

// Which blocks run, of an encoder whose tokens may be merged between them (Turbo); unknown: they may not, because its graph
// has no call sites of Turbo, or is not built of such blocks.
enum class blocks_run { unknown, all, but_last };

// How a picture becomes slices: not at all, by these keys of the header, or as llama.cpp has it.
enum class slicing {
    none,
    edge,    // preproc_image_size: slices of image_size in a picture of that edge
    tiles,   // preproc_min_tiles, preproc_max_tiles
    squares, // of 512 pixels, whatever the header says
};

// What enters the projector: the last layer's rows, or those of several, side by side (feature_layer).
enum class features { last_layer, layers };

// Where the row of CLS is, if there is one.
enum class cls_row { first, last };

// What may be left out before the encoder (vision/skip): nothing; units, behind each other in its graph, with positions in two
// dimensions; or the patches of units, which lie row by row.
enum class skipping { never, units, patches };

// Whether tokens have places in the picture, or are answers to queries.
enum class tokens { in_places, resampled };

// What llama.cpp's graph of an encoder takes for granted. Of files, who looks at it: the check of a header, Turbo, what may be
// quantized, what the tokens of a picture cover and how many there are.
struct encoder_rule {
    std::string projector;               // clip.projector_type
    place_table places;
    tensor_use  places_use;
    presence    cls;
    presence    patch_bias;
    presence    fused_attention;         // one matrix for queries, keys and values in place of three
    bool        attention_bias;          // required
    bool        old_names;               // files whose ffn_up and ffn_down are swapped are read, too
    int         head_multiple;           // of the head's size: rotated in pairs, in two directions
    std::string merge_key;               // of M; empty: 1
    int         merge_default;
    int         merge_min, merge_max;
    std::vector<std::string> keys;       // that pictures need, besides those of every encoder
    std::vector<tensor_rule> tensors;    // beside those of the layers
    blocks_run blocks = blocks_run::unknown; // but_last: up to the layer whose features are read, if the header has one
    slicing    slices = slicing::none;
    features   read   = features::last_layer;
    tokens     made   = tokens::in_places;
    cls_row    cls_at = cls_row::first;
    int32_t    most_tokens = 0;          // of a picture that is not sliced, to which its size is fitted; 0: by other keys
    skipping   skips  = skipping::never; // units of M x M patches

    bool merges() const { return blocks != blocks_run::unknown; }

    // what is behind the blocks puts patches side by side: merged rows are handed back to all of them before
    bool needs_grid() const { return !merge_key.empty(); }

    // every picture has the number of tokens that the header tells: (image_size/patch_size/M) squared
    bool fixed() const { return places == place_table::grid && slices == slicing::none; }
};

// null: not in the table
const encoder_rule * find_encoder(const std::string & projector);

// of a file whose header has this projector; has: whether the file has a tensor
const encoder_rule * find_encoder(const std::string & projector, const std::function<bool(const char *)> & has);

// Is a tensor only ever multiplied with, so that any type of weights will do? rule: null for an encoder that is not in the table;
// names then tell, which are the same in most.
bool is_matrix(const encoder_rule * rule, const std::string & tensor);

// the projectors of encoders whose tokens may be merged
std::vector<std::string> encoders_that_merge();

// of those that may leave units out
std::vector<std::string> encoders_that_skip();

// Of every layer, without "v.blk.N.".
const std::vector<tensor_rule> & layer_rules();

} // namespace pyfastv
