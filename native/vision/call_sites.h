#pragma once

#include "stop/eval_stop.h"
#include "vision/encoders.h"
#include "vision/turbo/turbo.h"
#include "vision/turbo/turbo_graph.h"

#include "mtmd.h"

#include "ggml-backend.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

// What libmtmd's own files hold and call of ours (third_party/patches/0003), in the order in which a picture comes by. Types of
// libmtmd's inside are only declared here.

struct clip_ctx;
struct clip_model;
struct mtmd_serialization;

namespace pyfastv {

//
// clip.cpp, clip-graph.h, models/*.cpp
//

// of a clip_ctx
struct encoder_state {
    // the program's eval callback; null: none
    encoder_state(ggml_backend_sched_eval_callback callback, void * data) : eval(callback, data) {}

    std::unique_ptr<pyfastv::turbo> turbo; // null: nothing is merged
    eval_stop                       eval;
};

// before an mmproj file is read: throws std::runtime_error if llama.cpp would abort on it (vision/mmproj.h)
void check_mmproj(const std::string & path);

// at the end of clip_graph's constructor: what adds the merging to this graph; null: nothing is merged
std::unique_ptr<turbo_graph> begin_graph(encoder_state & state, ggml_context * ctx0, ggml_cgraph * gf, int32_t n_patches);

// what is known of this encoder; null: it is not in the table
const encoder_rule * rule_of(const clip_ctx * ctx);

// at the end of clip_n_output_tokens(): how many are left of n
int32_t count_tokens(const encoder_state & state, int32_t n);

// in place of ggml_backend_sched_graph_compute(): GGML_STATUS_ABORTED if the program's callback said stop. Throws
// std::runtime_error if the merging was not computed.
ggml_status compute(encoder_state & state, ggml_backend_sched_t sched, ggml_cgraph * gf);

//
// mtmd.cpp
//

// of an mtmd_image_tokens, with which it is copied and saved
struct image_part {
    static constexpr int32_t not_numbered = -1;

    int32_t slice     = not_numbered; // its number among the slices of its picture, in prompt order
    int32_t n_patches = 0;            // tokens before they are merged; 0: they are not
};

// At the end of mtmd_input_chunk's serialize() and deserialize(); image: null for other chunks. A picture of one slice that is not
// merged is saved as by stock libmtmd, which reads slices, too. load_part() throws std::runtime_error.
void save_part(mtmd_serialization & to, const mtmd_image_tokens * image);
void load_part(mtmd_serialization & from, mtmd_image_tokens * image);

// at the end of mtmd_init_from_file(): LLAMA_TURBO
mtmd_context * turbo_from_environment(mtmd_context * ctx);

// In mtmd_tokenizer::add_media(), when the chunks of a picture are there: they get their parts. Merged tokens leave the positions
// of the others free. Throws std::runtime_error, which mtmd_tokenize() catches, if the encoder has no positions for the picture.
void end_picture(const clip_ctx * ctx, std::vector<mtmd_input_chunk> & chunks);

// mtmd_encode_chunk()'s value after an encoder that failed
int32_t encode_failure(clip_ctx * ctx);

//
// mtmd-helper.cpp
//

// In mtmd_helper_decode_image_chunk(), when there are positions, in order from n_past on: tells the context what the rows of the
// chunk are, and sets the positions of merged tokens. False, and a line in the log, if these are not known.
bool begin_chunk(const mtmd_context * ctx, llama_context * lctx, const mtmd_input_chunk * chunk, llama_pos n_past, llama_pos * positions);

} // namespace pyfastv

//
// what these files tell of their own types
//

// clip.cpp
pyfastv::encoder_state & clip_get_state(const clip_ctx * ctx);
const clip_model &       clip_get_model(const clip_ctx * ctx);

inline std::unique_ptr<pyfastv::turbo> & clip_get_turbo(const clip_ctx * ctx) { return clip_get_state(ctx).turbo; }

// vision/inside_mtmd.h
clip_ctx * mtmd_get_vision(const mtmd_context * ctx);
int32_t    mtmd_image_tokens_get_n_patches(const mtmd_image_tokens * image_tokens);
int32_t    mtmd_image_tokens_get_slice(const mtmd_image_tokens * image_tokens);
void       mtmd_image_tokens_get_shape(const mtmd_context * ctx, const mtmd_image_tokens * image_tokens, int32_t * nx, int32_t * ny);
