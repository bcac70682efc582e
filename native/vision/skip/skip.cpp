#include "vision/skip/skip.h"

#include "choose/predict.h"
#include "vision/call_sites.h"

#include "clip.h"
#include "clip-impl.h"
#include "clip-model.h"

#include <algorithm>

namespace pyfastv {
namespace {

// A picture cut into units, frames behind each other: [ny, nx, frames, side, side, 3], 3 bytes a pixel. The encoder's pixels are
// (value/255 - mean)/std of bytes, which are found again: so tau counts what it says, and 0 is the same.
std::vector<uint8_t> cut(const clip_image_f32_batch & picture, const clip_hparams & hparams, int32_t nx, int32_t ny, int32_t side) {
    const size_t n_row  = (size_t) side*3; // of a unit
    const size_t n_unit = n_row*side, n_frames = picture.entries.size();

    std::vector<float> scale(n_row), offset(n_row);
    for (size_t i = 0; i < n_row; ++i) {
        scale [i] = 255.0f*hparams.image_std [i % 3];
        offset[i] = 255.0f*hparams.image_mean[i % 3] + 0.5f; // rounds
    }

    std::vector<uint8_t> res(n_unit*n_frames*nx*ny);
    for (size_t f = 0; f < n_frames; ++f) {
        const auto & frame = picture.entries[f];
        const auto & pixels = frame.get_ro_buf();

        for (int32_t y = 0; y < ny*side; ++y) {
            for (int32_t x = 0; x < nx; ++x) {
                const float * from = pixels.data() + ((size_t) y*frame.nx() + (size_t) x*side)*3;
                uint8_t *     to   = res.data() + (((size_t) (y/side)*nx + x)*n_frames + f)*n_unit + (y % side)*n_row;

                for (size_t i = 0; i < n_row; ++i) {
                    to[i] = (uint8_t) std::clamp(from[i]*scale[i] + offset[i], 0.0f, 255.0f);
                }
            }
        }
    }
    return res;
}

} // namespace

std::shared_ptr<const encoded_units> choose_units(const clip_ctx * ctx, const clip_image_f32_batch & picture) {
    const auto & skip    = clip_get_state(ctx).skip;
    const auto & entries = picture.entries;

    const auto unseen = [](const clip_image_f32 & frame) { return frame.is_placeholder(); };
    if (!skip || entries.empty() || std::any_of(entries.begin(), entries.end(), unseen)) {
        return nullptr;
    }
    const auto &  hparams = *clip_get_hparams(ctx);
    const int32_t side    = hparams.patch_size*hparams.n_merge;
    const int32_t nx      = entries[0].nx()/side, ny = entries[0].ny()/side;

    const bool whole_units = nx > 0 && ny > 0 && nx*side == entries[0].nx() && ny*side == entries[0].ny();
    if (!whole_units || entries.size() > (size_t) clip_model_n_temporal_merge(ctx)) {
        return nullptr;
    }

    const auto units = cut(picture, hparams, nx, ny, side);
    auto       kept  = units_left(predict_units(units.data(), nx, ny, units.size()/((size_t) nx*ny), (int32_t) skip->tau));

    if (kept.size() == (size_t) nx*ny) {
        return nullptr; // stock's graph
    }
    return std::make_shared<const encoded_units>(encoded_units { nx, ny, std::move(kept) });
}

} // namespace pyfastv
