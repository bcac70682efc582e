#include "vision/picture_shape.h"

#include "vision/call_sites.h"

#include <cstring>
#include <memory>

bool pyfastv_shape_of(const mtmd_context * ctx, uint32_t width, uint32_t height, bool enlarge, pyfastv_picture_shape * shape) {
    // without pixels libmtmd counts as with them
    const std::unique_ptr<mtmd_bitmap, decltype(&mtmd_bitmap_free)>             bitmap(mtmd_bitmap_init(width, height, nullptr), mtmd_bitmap_free);
    const std::unique_ptr<mtmd_input_chunks, decltype(&mtmd_input_chunks_free)> chunks(mtmd_input_chunks_init(), mtmd_input_chunks_free);
    pyfastv_set_enlarge(bitmap.get(), enlarge);

    const char *          marker     = mtmd_get_marker(ctx);
    const mtmd_input_text text       = { marker, strlen(marker), /* add_special */ false, /* parse_special */ true };
    const mtmd_bitmap *   pictures[] = { bitmap.get() };

    if (mtmd_tokenize(ctx, chunks.get(), &text, pictures, 1) != 0) {
        return false;
    }
    *shape = {};
    for (size_t i = 0; i < mtmd_input_chunks_size(chunks.get()); ++i) {
        const auto * tokens = mtmd_input_chunk_get_tokens_image(mtmd_input_chunks_get(chunks.get(), i));
        if (!tokens) {
            continue;
        }
        if (shape->n_slices == 0) {
            mtmd_image_tokens_get_size(tokens, &shape->width, &shape->height);
        }
        shape->n_tokens += mtmd_image_tokens_get_n_patches(tokens);
        shape->n_slices++;
    }
    return shape->n_slices > 0;
}
