// engine: pictures, from pixels to the language model

#include "runner/engine.h"

#include "guard/workers.h"
#include "runner/damage.h"
#include "runner/errors.h"
#include "runner/log.h"
#include "runner/stage_times.h"
#include "runner/status.h"
#include "runner/stopwatch.h"

#include "products/parallel.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

namespace pyfastv {

static int64_t n_patches_of(const prompt_piece & piece) {
    int64_t res = 0;
    for (const auto & grid : piece.patches) {
        res += (int64_t) grid.nx*grid.ny;
    }
    return res;
}

bool engine::prefill_picture(events & out) {
    const auto starting = in(slot::state::starting);

    const auto it = std::find_if(starting.begin(), starting.end(), [](const slot * s) {
        return !s->waits && !s->flushing && s->next_piece().visual();
    });
    if (it == starting.end()) {
        return false;
    }
    auto & s = **it;

    int32_t         result = 0;
    const log_scope log(options.verbose);

    const auto thrown = error_of([&] {
        if (!take_over(s) && fetch(s)) {
            result = decode_visual(s, s.next_piece());
        }
        // no logits, but all layers are run
        if (result == 0 && s.evaluated.size() == s.request.wanted.pieces.size()) {
            s.flushing = { s.evaluated.size() - 1, false, {} };
        }
    });
    if (thrown) {
        keep(s, s.evaluated.size()); // nothing of the picture
        fail(s, *thrown, out);
        return true;
    }
    if (result == 0 || was_stopped || is_cancelled(s)) {
        return true;
    }
    if (result == 1) {
        no_room(s, out);
    } else {
        fail(s, log.failure(error_kind::decode, "the picture could not be evaluated", "llama_decode returned " + std::to_string(result)), out);
    }
    return true;
}

bool engine::fetch(slot & s) {
    auto &       wanted  = s.request.wanted;
    const size_t next    = s.evaluated.size();
    bool         may_run = true;

    if (wanted.pieces[next].reducer.empty()) {
        if (s.picture.values.empty()) {
            if (const auto * slice = encode(s, wanted.pieces[next], may_run)) {
                s.picture = *slice;
            }
        }
        return may_run && !s.picture.values.empty();
    }

    if (!s.reduced.has(next)) {
        s.reduced = picture_reduction(wanted, next);
    }
    while (s.reduced.n_added() < s.reduced.n_slices()) {
        const auto * slice = encode(s, wanted.pieces[s.reduced.next()], may_run);
        if (!slice) {
            return false;
        }
        s.reduced.add(*slice);
    }
    if (may_run && !s.reduced.done()) {
        const stopwatch watch;
        if (!backend) {
            backend = make_cpu_backend((int32_t) options.n_threads_batch, &stop);
        }
        const auto stopped = for_threads(stop);
        bool       whole   = false;
        working(s, [&] { whole = s.reduced.run(wanted, model.get(), backend.get(), stopped); });
        s.counts.reduce_ms += watch.ms();
        if (!whole) {
            return false;
        }
    }
    return s.reduced.done();
}

const encoded_slice * engine::encode(slot & s, const prompt_piece & piece, bool & may_run) {
    const auto key = piece.encoder_key();
    if (const auto * known = encoded.find(key)) {
        s.counts.pictures_from_cache += piece.slice == 0;
        return known;
    }
    if (encoded_files) {
        const auto n = (size_t) piece.n_encoded;
        if (auto known = encoded_files->find(key, { n*n_embd_inp(), n, n_patches_of(piece) })) {
            s.counts.pictures_from_cache += piece.slice == 0;
            s.counts.pictures_from_disk  += piece.slice == 0;
            return &encoded.put(key, std::move(*known));
        }
    }
    if (!may_run) {
        return nullptr;
    }
    may_run = false;

    start_workers(most_threads(options));

    const log_scope log(options.verbose);
    const stopwatch watch;

    const encoded_slice * res = nullptr;
    gate->with(piece.turbo, std::nullopt, [&] {
        bool whole = false;
        working(s, [&] { whole = encode_piece(vision.get(), piece, log); });

        if (!whole) {
            return;
        }
        s.counts.encode_ms += watch.ms();
        s.counts.pictures_encoded += piece.slice == 0;

        auto slice = encoder_output(vision.get(), model.get(), piece);
        check_numbers(slice.values.data(), slice.values.size(), "the vision encoder", options);

        if (encoded_files) {
            encoded_files->put(key, slice);
        }
        res = &encoded.put(key, std::move(slice));
    });
    return res;
}

int32_t engine::decode_visual(slot & s, const prompt_piece & piece) {
    const auto rows = piece.reducer.empty() ? visual_rows { s.picture.values, s.picture.places, { piece.n_tokens, 1 } }
                                            : s.reduced.rows(s.evaluated.size());

    check_fits_ubatch(vision.get(), ctx.get(), piece);
    decoded_last = nullptr;

    stage_times  times(ctx.get());
    int32_t      result = 0;
    const size_t n      = n_rows_at_once(vision.get(), ctx.get(), piece, s.n_rows);

    working(s, [&] {
        do {
            result = decode_picture(ctx.get(), vision.get(), piece, rows, s.n_past, s.seq_id, s.n_rows, n);
        } while (result == 1 && evict());
        llama_synchronize(ctx.get());
    });

    if (result != 0) {
        keep(s, s.evaluated.size()); // nothing of the picture
        return result;
    }
    times.stop();
    times.add_to(s.counts, 1);

    s.n_rows += n;
    if (s.n_rows < (size_t) piece.n_tokens) {
        return 0;
    }
    s.n_rows = 0;
    advance(s, { piece }, s.n_past + piece.n_pos);
    s.evaluated.back().places = rows.places;

    s.picture = {};
    if (s.reduced.ends_with(s.evaluated.size() - 1)) { // there may be text between its slices
        s.reduced = {};
    }
    remember(s);

    return 0;
}

//
// for who asks for them
//

pyfastv_picture_shape engine::shape_of(uint32_t width, uint32_t height, bool enlarge) const {
    if (!vision) {
        throw error(error_kind::option, "the model was loaded without an mmproj file: it has no pictures");
    }
    const log_scope log(false);

    pyfastv_picture_shape res = {};
    gate->as_it_is([&] {
        if (!pyfastv_shape_of(vision.get(), width, height, enlarge, &res)) {
            throw log.failure(error_kind::image, "a picture of " + std::to_string(width) + " x " + std::to_string(height) +
                    " cannot be prepared for the vision encoder");
        }
    });
    return res;
}

std::vector<slice_pixels> engine::pixels(const image & image) const {
    const log_scope log(options.verbose);

    std::vector<slice_pixels> res;
    gate->with(in_force.turbo, in_force.skip, [&] {
        const auto prompt = tokenize(model.get(), vision.get(), in_force, media_marker, media_marker, { image }, false, n_ctx_slot);

        for (const auto & piece : prompt.pieces) {
            if (piece.visual()) {
                const auto slices = pixels_of(vision.get(), piece.chunk);
                res.insert(res.end(), slices.begin(), slices.end());
            }
        }
    });
    return res;
}

std::vector<encoded_slice> engine::embed(const image & picture) {
    const log_scope log(options.verbose);

    prompt wanted;
    gate->with(in_force.turbo, in_force.skip, [&] {
        wanted = tokenize(model.get(), vision.get(), in_force, media_marker, media_marker, { picture }, false, n_ctx_slot);
    });

    const turn mine(*this);
    slot       nobody(-1);
    was_stopped = false;

    std::vector<encoded_slice> res;
    for (const auto & piece : wanted.pieces) {
        if (piece.visual()) {
            bool         may_run = true;
            const auto * slice   = encode(nobody, piece, may_run);
            if (!slice) {
                throw interrupted();
            }
            res.push_back(*slice);
        }
    }
    return res;
}

} // namespace pyfastv
