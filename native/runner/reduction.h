#pragma once

#include "choose/reducers/reduce.h"
#include "runner/encoder_cache.h"
#include "runner/pictures.h"
#include "runner/prompt.h"

#include "ggml-cpp.h"
#include "llama.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

// Fewer visual tokens between the vision encoder and the language model: reducers (reduce/reduce.h) on the pictures of a
// prompt.
namespace pyfastv {

// Throws error(option), with "reduce: " before what is wrong; and error(unsupported) if the model has no embeddings that a
// reducer which asks could read.
reducer parse_reducer_for(const llama_model * model, const std::string & spec);

// Writes down what will reduce the pictures of a prompt, and how long it then is. Throws error(option).
void plan_reduction(prompt & prompt, const reducer & how);

// Was the picture of `evaluated`, which is the prompt's piece, reduced for the question that follows it there?
bool question_follows(const prompt_piece & evaluated, const prompt & prompt, size_t piece);

// A picture on its way from the encoder to the language model: its slices, until all are there, and then what is left of
// each. plan_reduction() comes first.
class picture_reduction {
public:
    picture_reduction() = default;
    picture_reduction(const prompt & prompt, size_t piece); // any of its slices

    bool has(size_t piece) const;
    bool ends_with(size_t piece) const { return !pieces.empty() && pieces.back() == piece; }

    size_t n_slices() const { return pieces.size(); }
    size_t n_added()  const { return added; }
    size_t n_tokens() const; // when reduced

    // the slice that is to be added next, as a piece of the prompt
    size_t next() const { return pieces[added]; }
    void   add(const encoded_slice & slice);

    // When all were added; writes how many tokens are left into the prompt. False: `stopped`, which several threads ask, said
    // so, and nothing has changed. Throws error(option), error(unsupported), std::bad_alloc.
    bool run(prompt & prompt, const llama_model * model, ggml_backend_t backend, const stop_fn & stopped);
    bool done() const { return !rows_of.empty(); }

    visual_rows rows(size_t piece) const; // of a slice

private:
    size_t index_of(size_t piece) const;

    struct slice_rows {
        std::vector<float>   values;
        std::vector<int32_t> places;
        patch_grid           shape = { 0, 1 };
    };

    reducer                  how = {};
    std::vector<size_t>      pieces; // of the prompt: its slices
    std::vector<patch_grid>  grids;
    std::vector<size_t>      piece_of; // [grid] index in pieces
    std::vector<int32_t>     n_encoded; // [slice]
    size_t                   added = 0;
    std::vector<float>       values;    // of the slices that were added
    std::vector<int32_t>     places;    // of their tokens
    std::vector<slice_rows>  rows_of;   // [slice] what is left
};

} // namespace pyfastv
