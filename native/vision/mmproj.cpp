#include "vision/mmproj.h"

#include "vision/encoder_check.h"
#include "files/header.h"

namespace pyfastv {
namespace {

// What clip_model_loader reads with getters that abort on another type; %: vision, audio and gen.audio.
struct typed_key {
    const char * name;
    gguf_type    type;
};

constexpr typed_key typed_keys[] = {
    { "general.name",                            GGUF_TYPE_STRING  },
    { "general.description",                     GGUF_TYPE_STRING  },
    { "clip.projector_type",                     GGUF_TYPE_STRING  },
    { "clip.%.projector_type",                   GGUF_TYPE_STRING  },
    { "clip.vision.mm_patch_merge_type",         GGUF_TYPE_STRING  },
    { "clip.gen.audio.model_variant",            GGUF_TYPE_STRING  },
    { "clip.has_vision_encoder",                 GGUF_TYPE_BOOL    },
    { "clip.has_audio_encoder",                  GGUF_TYPE_BOOL    },
    { "clip.has_gen_audio_encoder",              GGUF_TYPE_BOOL    },
    { "clip.use_gelu",                           GGUF_TYPE_BOOL    },
    { "clip.use_silu",                           GGUF_TYPE_BOOL    },
    { "clip.minicpmv_version",                   GGUF_TYPE_INT32   },
    { "clip.%.attention.layer_norm_epsilon",     GGUF_TYPE_FLOAT32 },
    { "clip.vision.swiglu_clamp",                GGUF_TYPE_FLOAT32 },
    { "clip.minicpmv_query_num",                 GGUF_TYPE_UINT32  },
    { "clip.%.embedding_length",                 GGUF_TYPE_UINT32  },
    { "clip.%.feed_forward_length",              GGUF_TYPE_UINT32  },
    { "clip.%.block_count",                      GGUF_TYPE_UINT32  },
    { "clip.%.projection_dim",                   GGUF_TYPE_UINT32  },
    { "clip.%.attention.head_count",             GGUF_TYPE_UINT32  },
    { "clip.%.attention.head_count_kv",          GGUF_TYPE_UINT32  },
    { "clip.%.attention.head_dim",               GGUF_TYPE_UINT32  },
    { "clip.vision.image_size",                  GGUF_TYPE_UINT32  },
    { "clip.vision.image_min_pixels",            GGUF_TYPE_UINT32  },
    { "clip.vision.image_max_pixels",            GGUF_TYPE_UINT32  },
    { "clip.vision.preproc_min_tiles",           GGUF_TYPE_UINT32  },
    { "clip.vision.preproc_max_tiles",           GGUF_TYPE_UINT32  },
    { "clip.vision.preproc_image_size",          GGUF_TYPE_UINT32  },
    { "clip.vision.patch_size",                  GGUF_TYPE_UINT32  },
    { "clip.vision.projector.scale_factor",      GGUF_TYPE_UINT32  },
    { "clip.vision.projector.query_side",        GGUF_TYPE_UINT32  },
    { "clip.vision.projector.window_side",       GGUF_TYPE_UINT32  },
    { "clip.vision.spatial_merge_size",          GGUF_TYPE_UINT32  },
    { "clip.vision.n_wa_pattern",                GGUF_TYPE_UINT32  },
    { "clip.vision.window_size",                 GGUF_TYPE_UINT32  },
    { "clip.vision.sam.head_count",              GGUF_TYPE_UINT32  },
    { "clip.vision.sam.block_count",             GGUF_TYPE_UINT32  },
    { "clip.vision.sam.embedding_length",        GGUF_TYPE_UINT32  },
    { "clip.vision.expert_used_count",           GGUF_TYPE_UINT32  },
    { "clip.audio.num_mel_bins",                 GGUF_TYPE_UINT32  },
    { "clip.audio.projector.stack_factor",       GGUF_TYPE_UINT32  },
    { "clip.audio.chunk_size",                   GGUF_TYPE_UINT32  },
    { "clip.audio.conv_kernel_size",             GGUF_TYPE_UINT32  },
    { "clip.audio.max_pos_emb",                  GGUF_TYPE_UINT32  },
    { "clip.audio.projector.window_size",        GGUF_TYPE_UINT32  },
    { "clip.audio.projector.downsample_rate",    GGUF_TYPE_UINT32  },
    { "clip.audio.projector.head_count",         GGUF_TYPE_UINT32  },
    { "clip.audio.rvq.num_quantizers",           GGUF_TYPE_UINT32  },
    { "clip.audio.window_size",                  GGUF_TYPE_UINT32  },
    { "clip.audio.local_block_count",            GGUF_TYPE_UINT32  },
    { "clip.audio.local_group_size",             GGUF_TYPE_UINT32  },
    { "clip.audio.subsampling_factor",           GGUF_TYPE_UINT32  },
};

void check_type(const file_header & header, const std::string & name, gguf_type type) {
    const auto * value = header.key(name);
    if (value && (value->is_array || value->type != type)) {
        refuse("key '" + name + "' is of type " + gguf_type_name(value->is_array ? GGUF_TYPE_ARRAY : value->type) + ", expected " + gguf_type_name(type));
    }
}

void check_types(const file_header & header) {
    for (const auto & key : typed_keys) {
        const std::string name = key.name;
        const size_t      at   = name.find('%');
        if (at == std::string::npos) {
            check_type(header, name, key.type);
            continue;
        }
        for (const char * modality : { "vision", "audio", "gen.audio" }) {
            check_type(header, std::string(name).replace(at, 1, modality), key.type);
        }
    }
}

void check_ranges(const file_header & header, const file_limits & limits) {
    const double size = limits.image_size, pixels = size*size;

    for (const std::string modality : { "clip.vision.", "clip.audio.", "clip.gen.audio." }) {
        check_range(header, modality + "block_count", 0, limits.layers, "layers");
        check_range(header, modality + "embedding_length", 0, limits.width, "width");
        check_range(header, modality + "feed_forward_length", 0, 64.0*limits.width, "width");
        check_range(header, modality + "projection_dim", 0, limits.width, "width");
        check_range(header, modality + "attention.layer_norm_epsilon", 0, 1);
    }
    check_range(header, "clip.vision.sam.block_count", 0, limits.layers, "layers");
    check_range(header, "clip.vision.image_size", 0, size, "image_size");
    check_range(header, "clip.vision.preproc_image_size", 0, size, "image_size");
    check_range(header, "clip.vision.image_min_pixels", 0, pixels, "image_size");
    check_range(header, "clip.vision.image_grid_pinpoints", 1, 4*size, "image_size"); // of all slices together
    check_range(header, "clip.vision.preproc_min_tiles", 0, limits.tiles, "tiles");
    check_range(header, "clip.vision.preproc_max_tiles", 1, limits.tiles, "tiles");
    check_range(header, "clip.vision.patch_size", 1, 256);
    check_range(header, "clip.vision.projector.scale_factor", 1, 64);
    check_range(header, "clip.vision.spatial_merge_size", 1, 64);
    // a pixel is a number of 0 to 1, or at most 255: (pixel - mean)/std
    check_range(header, "clip.vision.image_mean", -1e4, 1e4);
    check_range(header, "clip.vision.image_std", 1e-4, 1e4);
}

void check_texts(const file_header & header) {
    for (const auto & [name, value] : header.keys) {
        if (name.rfind("clip.", 0) == 0 && !is_utf8(value.text)) {
            refuse("key " + name + " is not UTF-8");
        }
    }
}

// of every vision encoder
void check_required(const file_header & header) {
    for (const char * name : { "embedding_length", "feed_forward_length", "block_count", "projection_dim", "attention.head_count",
                               "attention.layer_norm_epsilon", "image_size", "patch_size", "image_mean", "image_std" }) {
        if (!header.key("clip.vision." + std::string(name))) {
            refuse("key clip.vision." + std::string(name) + " is missing");
        }
    }
}

bool is_true(const file_header & header, const char * name) {
    const auto * value = header.key(name);
    return value && !value->numbers.empty() && value->numbers[0] != 0;
}

} // namespace

void check_mmproj(const std::string & path) {
    const auto limits = file_limits::current();
    const auto header = file_header::read(path, limits);
    if (header.keys.empty()) {
        return;
    }

    check_types(header);
    check_finite(header, "clip.");
    check_ranges(header, limits);
    check_texts(header);

    if (!is_true(header, "clip.has_vision_encoder") && !is_true(header, "clip.has_audio_encoder") && !is_true(header, "clip.has_gen_audio_encoder")) {
        refuse("is not an mmproj file: none of clip.has_vision_encoder, clip.has_audio_encoder and clip.has_gen_audio_encoder is true");
    }
    if (is_true(header, "clip.has_vision_encoder")) {
        check_required(header);
        check_encoder(header, limits);
    }
    check_beginnings(path, header);
}

} // namespace pyfastv
