#include "vision/turbo/turbo_graph.h"

#include "vision/turbo/plan.h"
#include "vision/turbo/turbo.h"

#include <algorithm>

namespace pyfastv {
namespace {

// larger than every place
constexpr float place_of_merged = 1e9f;

// size*unit - place orders by size, the larger first, then by place, the lower first. Both share the 24 bits of a float: exact for
// sizes up to 2^24/unit, which is more than a picture of 4096 patches has. Of two heavier parts of another it may be either.
float place_unit(int32_t n_patches) {
    float unit = 4096.0f;
    while (unit < n_patches) {
        unit *= 2.0f;
    }
    return unit;
}

// more than scores differ by
constexpr float other_window = 1e6f;

// Logits of a block, in bytes, up to which the attention that tokens get is the mean over all of them. Of more that many.
constexpr int64_t most_logits = 256 << 20;

// of a logit: nothing is left of it, in F16, too
constexpr float unseen = -1e9f;

} // namespace

turbo_graph::turbo_graph(turbo & state, ggml_context * ctx0, ggml_cgraph * gf, int32_t n_patches) :
    state(state), ctx0(ctx0), gf(gf), steps(merging_steps(state.params, state.n_blocks, n_patches)),
    n_patches(n_patches), n(n_patches + state.cls) {
    const auto input = [&](ggml_type type, const char * name) {
        auto * t = ggml_new_tensor_2d(ctx0, type, 1, n);
        ggml_set_name(t, name);
        ggml_set_input(t);
        return t;
    };

    state.forget();
    state.steps.clear();
    state.in_size   = size  = input(GGML_TYPE_F32, "turbo_size");
    state.in_place  = place = input(GGML_TYPE_F32, "turbo_place");
    state.in_token  = input(GGML_TYPE_I32, "turbo_token");
    state.out_place = nullptr;
}

bool turbo_graph::needs_softmax(int il) const {
    return merges(il) && state.params.alpha > 0.0f && !state.cls && !value;
}

ggml_tensor * turbo_graph::repeat_rows(ggml_tensor * row, int64_t n_rows) const {
    row = ggml_reshape_2d(ctx0, row, ggml_nelements(row), 1);
    return ggml_repeat_4d(ctx0, row, row->ne[0], n_rows, 1, 1);
}

ggml_tensor * turbo_graph::log_size() {
    return ggml_log(ctx0, size);
}

void turbo_graph::stay_in(ggml_tensor * of_windows, int32_t nx, int32_t ny, int32_t side) {
    // a row of the mask is the same for all of a window, and so is the index of its largest
    window = ggml_reshape_2d(ctx0, cast(ggml_argmax(ctx0, of_windows), GGML_TYPE_F32), 1, n);

    side = std::max(side, 1);
    const int32_t n_windows = ((nx + side - 1)/side)*((ny + side - 1)/side);
    steps = merging_steps(state.params, state.n_blocks, n_patches, n_windows);
}

ggml_tensor * turbo_graph::apart(ggml_tensor * a, ggml_tensor * b) const {
    return ggml_clamp(ctx0, ggml_sqr(ctx0, ggml_sub(ctx0, a, b)), 0.0f, 1.0f);
}

ggml_tensor * turbo_graph::mask(ggml_tensor * given) {
    if (!merged) {
        return given;
    }
    auto & res = given ? masked_in_window : masked;
    if (!res) {
        res = repeat_rows(log_size(), n);
        if (given) {
            GGML_ASSERT(window);
            res = ggml_add(ctx0, res, ggml_scale(ctx0, apart(repeat_rows(window, n), window), unseen));
        }
    }
    return res;
}

ggml_tensor * turbo_graph::at_places(ggml_tensor * t) {
    if (!merged) {
        return t;
    }
    auto & res = placed[t];
    if (!res) {
        const auto turned = [&](ggml_tensor * a) { return ggml_cont(ctx0, ggml_transpose(ctx0, a)); };
        const int64_t k   = t->ne[0]/n_patches;

        auto * rows = k == 1 ? ggml_reshape_2d(ctx0, t, 1, n_patches) : turned(ggml_reshape_2d(ctx0, t, n_patches, k)); // [k, n_patches]
        auto * left = ggml_get_rows(ctx0, rows, ggml_reshape_1d(ctx0, cast(place, GGML_TYPE_I32), n));                  // [k, n]
        res = ggml_reshape_1d(ctx0, k == 1 ? left : turned(left), k*n);
    }
    return res;
}

ggml_tensor * turbo_graph::restored(ggml_tensor * x) const {
    return target ? ggml_get_rows(ctx0, x, target) : x;
}

// Sum over the heads, which has the direction of the mean: halves are added to each other, as long as there are halves.
ggml_tensor * turbo_graph::mean_key(ggml_tensor * k) const {
    const auto heads = [&](ggml_tensor * t, int64_t first, int64_t count) {
        return ggml_view_3d(ctx0, t, t->ne[0], count, t->ne[2], t->nb[1], t->nb[2], first*t->nb[1]);
    };

    while (k->ne[1] > 1 && k->ne[1] % 2 == 0) {
        k = ggml_add(ctx0, heads(k, 0, k->ne[1]/2), heads(k, k->ne[1]/2, k->ne[1]/2));
    }
    ggml_tensor * sum = heads(k, 0, 1);
    for (int64_t h = 1; h < k->ne[1]; ++h) {
        sum = ggml_add(ctx0, sum, heads(k, h, 1));
    }
    if (!ggml_is_contiguous(sum)) {
        sum = ggml_cont(ctx0, sum);
    }
    return ggml_reshape_2d(ctx0, sum, k->ne[0], k->ne[2]);
}

ggml_tensor * turbo_graph::on_attention(ggml_tensor * q, ggml_tensor * k, ggml_tensor * given, float scale, int il) {
    auto * to_all = mask(given);
    if (!merges(il)) {
        return to_all;
    }
    key   = mean_key(k);
    value = nullptr;

    if (state.params.alpha == 0.0f) {
        return to_all;
    }
    if (!state.cls) {
        const int64_t every = ((int64_t) sizeof(float)*n*n*q->ne[1] + most_logits - 1)/most_logits;
        if (every > 1) {
            const int64_t n_asked = (n + every - 1)/every;

            q = ggml_view_3d(ctx0, q, q->ne[0], q->ne[1], n_asked, q->nb[1], every*q->nb[2], 0);
            auto * kq   = ggml_mul_mat(ctx0, ggml_permute(ctx0, k, 0, 2, 1, 3), ggml_permute(ctx0, q, 0, 2, 1, 3));
            auto * rows = to_all ? ggml_cont(ctx0, ggml_view_2d(ctx0, to_all, n, n_asked, every*to_all->nb[1], 0)) : nullptr;
            value = mean_attention(ggml_soft_max_ext(ctx0, kq, rows, scale, 0.0f));
        }
        return to_all;
    }

    // the row of CLS alone: [n, 1, n_head]
    auto * q_cls = ggml_view_3d(ctx0, q, q->ne[0], 1, q->ne[1], q->nb[2], q->nb[1], state.first_patch() ? 0 : (n - 1)*q->nb[2]);
    auto * kq    = ggml_mul_mat(ctx0, ggml_permute(ctx0, k, 0, 2, 1, 3), q_cls);

    kq = ggml_soft_max_ext(ctx0, kq, merged ? ggml_reshape_2d(ctx0, log_size(), n, 1) : nullptr, scale, 0.0f);
    kq = ggml_reshape_2d(ctx0, kq, n, kq->ne[2]);

    value = ggml_mean(ctx0, ggml_cont(ctx0, ggml_transpose(ctx0, kq)));
    return to_all;
}

void turbo_graph::on_softmax(ggml_tensor * kq, int il) {
    if (needs_softmax(il)) {
        value = mean_attention(kq);
    }
}

// Mean over queries and heads, F32 [1, n]; the longest part of the way in halves that are added to each other.
ggml_tensor * turbo_graph::mean_attention(ggml_tensor * kq) const {
    const int64_t n_rows = kq->ne[1]*kq->ne[2];

    kq = ggml_reshape_2d(ctx0, kq, n, n_rows);
    while (kq->ne[1] % 2 == 0) {
        const int64_t half = kq->ne[1]/2;
        kq = ggml_add(ctx0, ggml_view_2d(ctx0, kq, n, half, kq->nb[1], 0), ggml_view_2d(ctx0, kq, n, half, kq->nb[1], half*kq->nb[1]));
    }
    kq    = ggml_sum_rows(ctx0, ggml_cont(ctx0, ggml_transpose(ctx0, kq)));
    return ggml_scale(ctx0, kq, 1.0f/n_rows);
}

// [d, n] -> [d, evens or odds], a view; CLS is neither
ggml_tensor * turbo_graph::every_second(ggml_tensor * t, int32_t parity) const {
    const int64_t n_dealt = n - state.cls;
    const int64_t count   = parity == 0 ? (n_dealt + 1)/2 : n_dealt/2;

    return ggml_view_2d(ctx0, t, t->ne[0], count, 2*t->nb[1], (state.first_patch() + parity)*t->nb[1]);
}

ggml_tensor * turbo_graph::merge(ggml_tensor * x, int il) {
    if (!merges(il)) {
        return x;
    }
    for (const int32_t r : steps[il]) {
        x = step(x, r);
    }
    key = value = masked = masked_in_window = nullptr;
    placed.clear();
    merged = true;

    const bool last = std::all_of(steps.begin() + il + 1, steps.end(), [](const auto & block) { return block.empty(); });
    if (last) {
        state.out_place = place;
        ggml_set_output(place);
        ggml_build_forward_expand(gf, place); // nothing else needs it
    }
    return x;
}

// Where every patch's token went in a step, order: (n) its tokens by place, the merged last.
void turbo_graph::follow(ggml_tensor * order, ggml_tensor * src, ggml_tensor * dst) {
    // the order of an order tells every token's place in it
    auto * rank = ggml_argsort(ctx0, cast(order, GGML_TYPE_F32), GGML_SORT_ORDER_ASC);                          // (n)
    auto * into = ggml_reshape_2d(ctx0, cast(rank, GGML_TYPE_F32), 1, n);                                       // [1, n]
    into = ggml_set_rows(ctx0, into, ggml_get_rows(ctx0, into, dst), src);

    if (target) {
        into = ggml_get_rows(ctx0, into, target);                                                               // [1, n_in]
    }
    target = cast(ggml_reshape_1d(ctx0, into, ggml_nelements(into)), GGML_TYPE_I32);
}

ggml_tensor * turbo_graph::step(ggml_tensor * x, int32_t r) {
    const auto contiguous = [&](ggml_tensor * t) { return ggml_cont(ctx0, t); };
    const auto column     = [&](ggml_tensor * t) { return ggml_reshape_2d(ctx0, t, r, 1); };

    key = ggml_l2_norm(ctx0, key, 1e-12f);

    auto * key_e = contiguous(evens(key));
    auto * key_o = contiguous(odds(key));

    const int64_t n_evens = key_e->ne[1];

    // the best partner of every even, and the r best pairs
    auto * like     = ggml_mul_mat(ctx0, key_o, key_e);                                                         // [odds, evens]
    auto * window_e = window ? contiguous(evens(window)) : nullptr;
    auto * window_o = window ? contiguous(odds (window)) : nullptr;
    if (window) {
        like = ggml_sub(ctx0, like, ggml_scale(ctx0, apart(repeat_rows(window_o, n_evens), window_e), other_window));
    }
    auto * partners = ggml_argmax(ctx0, like);                                                                  // (evens)
    auto * score    = ggml_sum_rows(ctx0, ggml_mul(ctx0, key_e, ggml_get_rows(ctx0, key_o, partners)));         // [1, evens]
    if (window) { // of an even without an odd in its window
        score = ggml_sub(ctx0, score, ggml_scale(ctx0, apart(ggml_get_rows(ctx0, window_o, partners), window_e), other_window));
    }
    if (value) {
        score = ggml_sub(ctx0, score, ggml_scale(ctx0, contiguous(evens(value)), state.params.alpha*n));
    }
    auto * ranked = ggml_argsort(ctx0, ggml_reshape_1d(ctx0, score, n_evens), GGML_SORT_ORDER_DESC);            // (evens)

    // from here on: the merged tokens ("src") and what they are merged into ("dst"), pair by pair
    auto * picked = ggml_view_1d(ctx0, ranked, r, 0);
    auto * chosen = ggml_reshape_1d(ctx0, ggml_get_rows(ctx0, ggml_reshape_2d(ctx0, partners, 1, n_evens), picked), r);
    auto * src    = ggml_reshape_1d(ctx0, ggml_get_rows(ctx0, evens(state.in_token), picked), r);
    auto * dst    = ggml_reshape_1d(ctx0, ggml_get_rows(ctx0, odds (state.in_token), chosen), r);

    const auto at_src = [&](ggml_tensor * t) { return ggml_get_rows(ctx0, t, src); };
    const auto at_dst = [&](ggml_tensor * t) { return ggml_get_rows(ctx0, t, dst); };

    // several may be merged into one. same[i, j] = 1 if pairs i and j are, else 0; places tell tokens apart
    auto * place_dst = at_dst(place);                                                                           // [1, r]
    auto * distance  = ggml_sqr(ctx0, ggml_sub(ctx0, repeat_rows(place_dst, r), place_dst));                    // [r, r]
    auto * same      = ggml_scale_bias(ctx0, ggml_clamp(ctx0, distance, 0.0f, 1.0f), -1.0f, 1.0f);

    auto * size_src = at_src(size);                                                                             // [1, r]
    auto * size_dst = at_dst(size);
    auto * size_new = ggml_add(ctx0, size_dst, ggml_reshape_2d(ctx0, ggml_mul_mat(ctx0, same, column(size_src)), 1, r));
    auto * weight   = ggml_div(ctx0, size_src, size_new);

    // dst + sum of weight*(src - dst): what is not merged keeps its bits. All pairs of one dst write the same
    const auto mean_into_dst = [&](ggml_tensor * t) {
        auto * old   = at_dst(t);
        auto * delta = ggml_mul(ctx0, ggml_sub(ctx0, at_src(t), old), weight);                                  // [d, r]
        auto * sum   = ggml_mul_mat(ctx0, contiguous(ggml_transpose(ctx0, delta)), same);                       // [d, r]
        return ggml_set_rows(ctx0, t, ggml_add(ctx0, old, sum), dst);
    };

    // the heaviest part's place: of dst itself, or of one of the src of the same dst
    const auto weight_of = [&](ggml_tensor * s, ggml_tensor * p) { return ggml_sub(ctx0, ggml_scale(ctx0, s, place_unit(n_patches)), p); };
    auto * place_src = at_src(place);
    auto * weights   = ggml_concat(ctx0, weight_of(size_dst, place_dst), ggml_mul(ctx0, same, column(weight_of(size_src, place_src))), 0);
    auto * places    = ggml_concat(ctx0, place_dst, ggml_mul(ctx0, same, column(place_src)), 0);                // [1 + r, r]
    auto * heaviest  = ggml_reshape_2d(ctx0, ggml_argmax(ctx0, weights), 1, r);
    auto * place_new = ggml_reshape_2d(ctx0, ggml_get_rows(ctx0, ggml_reshape_3d(ctx0, places, 1, 1 + r, r), heaviest), 1, r);

    // raster order, what was merged at the end
    auto * gone  = ggml_scale_bias(ctx0, size_src, 0.0f, place_of_merged);
    auto * moved = ggml_set_rows(ctx0, contiguous(place), place_new, dst);
    moved = ggml_set_rows(ctx0, moved, gone, src);
    auto * order = ggml_argsort(ctx0, ggml_reshape_1d(ctx0, moved, n), GGML_SORT_ORDER_ASC);

    for (auto * t : { ranked, partners, order }) {
        ggml_set_output(t);
    }
    state.steps.push_back({ n, ranked, partners, order, r });

    if (state.restore) {
        follow(order, src, dst);
    }
    auto * left = ggml_view_1d(ctx0, order, n - r, 0);

    x     = ggml_get_rows(ctx0, mean_into_dst(x), left);
    key   = ggml_get_rows(ctx0, mean_into_dst(contiguous(key)), left);
    size  = ggml_get_rows(ctx0, ggml_set_rows(ctx0, contiguous(size), size_new, dst), left);
    place = ggml_get_rows(ctx0, moved, left);
    window = window ? ggml_get_rows(ctx0, window, left) : nullptr;
    if (value) {
        auto * sum = ggml_reshape_2d(ctx0, ggml_mul_mat(ctx0, same, column(at_src(value))), 1, r);
        value = ggml_get_rows(ctx0, ggml_set_rows(ctx0, contiguous(value), ggml_add(ctx0, at_dst(value), sum), dst), left);
    }
    n -= r;

    return x;
}

} // namespace pyfastv
