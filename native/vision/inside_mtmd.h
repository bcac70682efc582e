// At the end of mtmd.cpp, which includes this: functions that need what mtmd.cpp keeps to itself, mtmd_context,
// mtmd_image_tokens and mtmd_serialization.

static void pyfastv_set_merged(const clip_ctx * ctx, mtmd_image_tokens & image) {
    if (const auto & turbo = clip_get_turbo(ctx)) {
        const auto & img        = image.batch_f32.entries.at(0);
        const int    patch_size = clip_get_hparams(ctx)->patch_size;

        image.pyfastv_part.n_patches = (img.nx() / patch_size) * (img.ny() / patch_size);
        image.pos                    = turbo->params.renumber ? image.pos : MTMD_POS_TYPE_MERGED;
    }
}

// positions that are looked up by column and row
static void pyfastv_check_places(const clip_ctx * ctx, const mtmd_image_tokens & image) {
    const auto * rule = pyfastv::rule_of(ctx);
    if (!rule || rule->places != pyfastv::place_table::axes) {
        return;
    }
    const int     patch_size = clip_get_hparams(ctx)->patch_size;
    const int64_t n_rows     = clip_get_model(ctx).position_embeddings->ne[1];

    for (const auto & img : image.batch_f32.entries) {
        const int n_patches = std::max(img.nx(), img.ny()) / patch_size;
        if (n_patches > n_rows) {
            throw std::runtime_error("the picture is too long and thin: its longer side is of " + std::to_string(n_patches) +
                    " patches, and the vision encoder has positions for " + std::to_string(n_rows));
        }
    }
}

void pyfastv::end_picture(const clip_ctx * ctx, std::vector<mtmd_input_chunk> & chunks) {
    int32_t n = 0;
    for (auto & chunk : chunks) {
        if (chunk.tokens_image && chunk.tokens_image->pyfastv_part.slice == image_part::not_numbered) {
            chunk.tokens_image->pyfastv_part.slice = n++;
            pyfastv_check_places(ctx, *chunk.tokens_image);
            pyfastv_set_merged(ctx, *chunk.tokens_image);
        }
    }
}

// of what is behind a saved chunk
static constexpr uint32_t pyfastv_part_version = 1;

void pyfastv::save_part(mtmd_serialization & to, const mtmd_image_tokens * image) {
    if (image && (image->pyfastv_part.slice > 0 || image->pyfastv_part.n_patches > 0)) {
        to.write(pyfastv_part_version);
        to.write(image->pyfastv_part.slice);
        to.write(image->pyfastv_part.n_patches);
    }
}

void pyfastv::load_part(mtmd_serialization & from, mtmd_image_tokens * image) {
    if (!image) {
        return;
    }
    auto & part = image->pyfastv_part;

    part = { /* slice */ 0, /* n_patches */ 0 };
    if (from.read_pos < from.data.size()) {
        const auto version = from.read<uint32_t>();
        if (version != pyfastv_part_version) {
            throw std::runtime_error("pyfastv: a chunk of version " + std::to_string(version) + " is not known, only of " +
                    std::to_string(pyfastv_part_version));
        }
        part.slice     = from.read<int32_t>();
        part.n_patches = from.read<int32_t>();
    }
    const auto n_tokens = image->n_tokens();
    const bool merged   = part.n_patches != 0 || image->pos == MTMD_POS_TYPE_MERGED;
    if (part.slice < 0 || (merged && (part.n_patches < 1 || (uint32_t) part.n_patches < n_tokens))) {
        throw std::runtime_error("pyfastv: a chunk is slice " + std::to_string(part.slice) + " of its picture, and has " +
                std::to_string(n_tokens) + " tokens of " + std::to_string(part.n_patches) + " patches");
    }
}

clip_ctx * mtmd_get_vision(const mtmd_context * ctx) {
    return ctx->ctx_v;
}

int32_t mtmd_image_tokens_get_n_patches(const mtmd_image_tokens * image_tokens) {
    const auto n_patches = image_tokens->pyfastv_part.n_patches;
    return n_patches > 0 ? n_patches : image_tokens->n_tokens();
}

int32_t mtmd_image_tokens_get_slice(const mtmd_image_tokens * image_tokens) {
    return image_tokens->pyfastv_part.slice;
}

// for those that make one picture of several, as the frames of a video: its number among them
MTMD_API void mtmd_image_tokens_set_slice(mtmd_image_tokens * image_tokens, int32_t slice) {
    image_tokens->pyfastv_part.slice = slice;
}

// what the tokens cover in raster order, in patches or pixels; resampled tokens have no places
void mtmd_image_tokens_get_shape(const mtmd_context * ctx, const mtmd_image_tokens * image_tokens, int32_t * nx, int32_t * ny) {
    const auto & entries = image_tokens->batch_f32.entries;
    const auto * rule    = pyfastv::rule_of(ctx->ctx_v);
    const bool   placed  = !rule || rule->made == pyfastv::tokens::in_places;
    const bool   counted = image_tokens->ny > 1 || !placed || clip_get_turbo(ctx->ctx_v) || entries.empty();

    *nx = counted ? image_tokens->nx : entries[0].nx();
    *ny = counted ? image_tokens->ny : entries[0].ny();
}

// what the encoder sees of entry i, F32 [ny, nx, 3], which is (value/255 - mean)/std; null: no such entry
MTMD_API const float * mtmd_image_tokens_get_pixels(const mtmd_context * ctx, const mtmd_image_tokens * image_tokens, size_t i,
        int32_t * nx, int32_t * ny, const float ** mean, const float ** std) {
    const auto & entries = image_tokens->batch_f32.entries;
    if (i >= entries.size() || entries[i].is_placeholder()) {
        return nullptr;
    }
    const auto * hparams = clip_get_hparams(ctx->ctx_v);
    *nx   = entries[i].nx();
    *ny   = entries[i].ny();
    *mean = hparams->image_mean;
    *std  = hparams->image_std;
    return entries[i].get_ro_buf().data();
}

// of the next encodings
MTMD_API void mtmd_set_n_threads(mtmd_context * ctx, int n_threads) {
    ctx->n_threads = n_threads;
}
