#include "runner/engine.h"

#include "guard/workers.h"
#include "runner/damage.h"
#include "runner/errors.h"
#include "runner/log.h"
#include "runner/status.h"
#include "runner/stopwatch.h"
#include "runner/turbo.h"

#include "ggml.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace pyfastv {
namespace {

constexpr int64_t poll_interval_us = 10'000;

} // namespace

//
// FastV
//

void engine::set_fastv(const std::string & spec) {
    pyfastv_params params = {};
    params.size = sizeof(params);
    if (pyfastv_parse(spec.c_str(), n_layer(), &params) != PYFASTV_OK) {
        throw error(error_kind::option, pyfastv_last_error());
    }
    attach(&params);
}

void engine::clear_fastv() {
    attach(nullptr);
}

void engine::set_turbo(const std::string & spec) {
    const log_scope log(options.verbose);

    attach_turbo(vision.get(), spec);
    turbo = spec;
    reset();
}

void engine::clear_turbo() {
    set_turbo("");
}

void engine::attach(const pyfastv_params * params) {
    const log_scope log(options.verbose);

    require_memory();

    const auto status = pyfastv_attach(ctx.get(), params);
    lost_memory = status != PYFASTV_OK && !llama_get_memory(ctx.get());
    reset();
    if (status != PYFASTV_OK) {
        throw error(kind_of(status), pyfastv_last_error());
    }
}

void engine::require_memory() const {
    if (lost_memory) {
        throw error(error_kind::out_of_memory, "the context lost its KV cache when memory ran out: load the model again");
    }
}

int32_t engine::check_cut(int32_t cut) const {
    const int32_t n_cuts = report_of(ctx.get()).n_stages - 1;

    if (cut < -n_cuts || cut >= n_cuts) {
        throw error(error_kind::option, "cut " + std::to_string(cut) + " is out of range: there are " + std::to_string(n_cuts));
    }
    return cut < 0 ? cut + n_cuts : cut;
}

std::vector<int32_t> engine::kept(int32_t cut) const {
    cut = check_cut(cut);
    std::vector<int32_t> res(pyfastv_get_kept(ctx.get(), 0, cut, nullptr, 0));
    pyfastv_get_kept(ctx.get(), 0, cut, res.data(), res.size());
    return res;
}

std::vector<float> engine::scores(int32_t cut) const {
    cut = check_cut(cut);
    std::vector<float> res(pyfastv_get_scores(ctx.get(), 0, cut, nullptr, 0));
    pyfastv_get_scores(ctx.get(), 0, cut, res.data(), res.size());
    return res;
}

std::vector<pyfastv_grid> engine::grids() const {
    std::vector<pyfastv_grid> res(pyfastv_get_grids(ctx.get(), 0, nullptr, 0));
    pyfastv_get_grids(ctx.get(), 0, res.data(), res.size());
    return res;
}

//
// prefill
//

template <typename F>
auto engine::computing(F && f) {
    start_workers((int32_t) options.n_threads);

    unsound  = true; // until f() returns: it may throw in the middle of anything
    auto res = f();
    unsound  = false;

    return res;
}

void engine::check_sound() const {
    if (unsound) {
        throw error(error_kind::decode, "the last computation failed, and the context with it: begin again with a prompt");
    }
}

void engine::reset() {
    llama_memory_clear(llama_get_memory(ctx.get()), false);
    evaluated.clear();
    n_past = 0;
    end_generation();
}

void engine::end_generation() {
    sampler.reset();
    sampled.reset();
    finish      = nullptr;
    was_stopped = false;
}

size_t engine::reuse(const prompt & prompt) {
    size_t    n   = 0;
    llama_pos pos = 0;

    // The last piece is evaluated again: somebody will read its logits. A picture stays; its choice goes if the question
    // behind it does.
    while (n < evaluated.size() && n + 1 < prompt.pieces.size() && prompt.pieces[n].same_as(evaluated[n]) &&
            question_follows(evaluated[n], prompt, n)) {
        pos += evaluated[n].n_pos;
        n++;
    }

    auto * memory = llama_get_memory(ctx.get());

    // layers with sliding windows may have forgotten what the next token sees
    const int32_t n_swa = llama_model_n_swa(model.get());
    if (n_swa > 0 && n < evaluated.size() && llama_memory_seq_pos_min(memory, 0) > std::max(0, pos - n_swa)) {
        reset();
        return 0;
    }

    if (!llama_memory_seq_rm(memory, 0, pos, -1)) {
        reset();
        return 0;
    }

    evaluated.resize(n);
    n_past = pos;

    return n;
}

prompt engine::tokenized(const std::string & text, const std::vector<image> & images, bool add_bos) const {
    return tokenize(model.get(), vision.get(), turbo, media_marker, text, images, add_bos, n_ctx());
}

void engine::prefill(const std::string & text, const std::vector<image> & images, bool add_bos, int64_t reserve, const progress_fn & progress) {
    const log_scope log(options.verbose);

    check_whole("reserve", reserve, 0, INT32_MAX);
    if (unsound) {
        reset();
        unsound = false;
    }
    require_memory();

    auto prompt = tokenized(text, images, add_bos);
    if (reduce_how) {
        plan_reduction(prompt, *reduce_how);
    }

    if (prompt.n_tokens == 0) {
        throw error(error_kind::option, "the prompt is empty");
    }
    if (prompt.n_tokens + reserve > n_ctx()) {
        error err(error_kind::context_length, "the prompt has " + std::to_string(prompt.n_tokens) + " tokens (" +
                std::to_string(prompt.n_visual) + " of them visual) and " + std::to_string(reserve) +
                " more have to fit behind it, but n_ctx is " + std::to_string(n_ctx()) +
                ": use a larger n_ctx, fewer pictures or a shorter prompt");
        err.n_tokens = prompt.n_tokens;
        err.n_ctx    = n_ctx();
        throw err;
    }

    const int64_t t0 = ggml_time_us();

    counts = {};
    end_generation();
    pyfastv_reset_report(ctx.get());
    llama_perf_context_reset(ctx.get());

    const size_t n_reused = reuse(prompt);

    counts.prompt_tokens  = prompt.n_tokens;
    counts.visual_tokens  = prompt.n_visual;
    counts.encoded_tokens = prompt.n_encoded;
    counts.patches        = prompt.n_patches;
    for (size_t i = 0; i < n_reused; ++i) {
        counts.cached_tokens += evaluated[i].n_tokens;
    }
    t_prefill_us = t0;

    int64_t done = counts.cached_tokens, told = 0;

    const auto tell = [&](int64_t n) {
        if (progress) {
            told = std::max(told, n);
            progress(told, prompt.n_tokens);
        }
    };

    picture_reduction reduced;

    const auto & pieces = prompt.pieces;
    for (size_t i = n_reused; i < pieces.size(); ) {
        size_t end = i + 1;
        if (!pieces[i].reducer.empty()) {
            if (!reduced.has(i)) {
                reduced = {}; // before the next one takes its memory
                reduced = reduce_picture(prompt, i, [&](size_t n) { tell(done + (int64_t) n/2); });
            }
            check_fits_ubatch(vision.get(), ctx.get(), pieces[i]);
            decode_visual(pieces[i], reduced.rows(i));
            done += pieces[i].n_tokens;
        } else if (pieces[i].visual()) {
            check_fits_ubatch(vision.get(), ctx.get(), pieces[i]); // before the encoder's work
            const auto & slice = encode(pieces[i]);
            decode_visual(pieces[i], { slice.values, slice.places, { pieces[i].n_tokens, 1 } });
            done += pieces[i].n_tokens;
        } else {
            while (end < pieces.size() && end - i < llama_n_batch(ctx.get()) && !pieces[end].visual()) {
                end++;
            }
            time_full([&] { decode_text(pieces, i, end, end == pieces.size()); });
            done += end - i;
        }
        i = end;

        tell(done);
    }

    const auto status = computing([&] { return pyfastv_flush(ctx.get()); });
    if (status == PYFASTV_ABORTED) {
        throw interrupted();
    }
    if (status != PYFASTV_OK) {
        throw error(kind_of(status), std::string("the later layers failed: ") + pyfastv_last_error());
    }
    llama_synchronize(ctx.get());
}

void engine::time_full(const std::function<void()> & decode) {
    const stopwatch watch;
    const double    stage0_before = report_of(ctx.get()).t_stage0_ms;

    decode();

    // what ran through stage 0 is in pyfastv's own report
    if (report_of(ctx.get()).t_stage0_ms == stage0_before) {
        counts.full_ms += watch.ms();
    }
}

void engine::decode_text(const std::vector<prompt_piece> & pieces, size_t begin, size_t end, bool logits_last) {
    const log_scope log(options.verbose);

    std::vector<llama_token>  tokens;
    std::vector<llama_pos>    pos;
    std::vector<int8_t>       outputs(end - begin, 0);
    for (size_t i = begin; i < end; ++i) {
        tokens.push_back(pieces[i].token);
        pos.push_back(n_past + (llama_pos) (i - begin));
    }
    outputs.back() = logits_last;

    llama_batch batch = {};
    batch.n_tokens = tokens.size();
    batch.token    = tokens.data();
    batch.pos      = pos.data();
    batch.logits   = outputs.data();

    check(computing([&] { return llama_decode(ctx.get(), batch); }), log);
    llama_synchronize(ctx.get());

    n_past += end - begin;
    evaluated.insert(evaluated.end(), pieces.begin() + begin, pieces.begin() + end);
}

void engine::decode_visual(const prompt_piece & piece, const visual_rows & rows) {
    const log_scope log(options.verbose);

    if (stop_requested()) {
        throw interrupted();
    }

    time_full([&] {
        check(computing([&] { return decode_picture(ctx.get(), vision.get(), piece, rows, n_past, 0); }), log);
        llama_synchronize(ctx.get());
    });

    n_past += piece.n_pos;
    evaluated.push_back(piece);
    evaluated.back().chunk  = nullptr;
    evaluated.back().places = rows.places;
}

const encoded_slice & engine::encode(const prompt_piece & piece) {
    const log_scope log(options.verbose);

    if (const auto * known = encoded.find(piece.encoder_key())) {
        counts.pictures_from_cache += piece.slice == 0;
        return *known;
    }

    start_workers((int32_t) options.n_threads);

    const stopwatch watch;
    if (!encode_piece(vision.get(), piece, log)) {
        throw interrupted();
    }
    counts.encode_ms += watch.ms();
    counts.pictures_encoded += piece.slice == 0;

    auto slice = encoder_output(vision.get(), model.get(), piece);
    check_numbers(slice.values.data(), slice.values.size(), "the vision encoder", options);

    return encoded.put(piece.encoder_key(), std::move(slice));
}

void engine::check(int32_t decode_result, const log_scope & log) {
    if (decode_result == 0) {
        return;
    }
    if (was_stopped || decode_result == 2) {
        throw interrupted();
    }
    if (decode_result == 1) {
        error err(error_kind::context_length, "the context of " + std::to_string(n_ctx()) + " tokens is full");
        err.n_tokens = n_tokens();
        err.n_ctx    = n_ctx();
        throw err;
    }
    throw log.failure(error_kind::decode, "llama_decode returned " + std::to_string(decode_result));
}

int64_t engine::n_tokens() const {
    return std::accumulate(evaluated.begin(), evaluated.end(), (int64_t) 0, [](int64_t sum, const prompt_piece & piece) { return sum + piece.n_tokens; });
}

bool engine::stop_requested() {
    if (was_stopped || !options.interrupt) {
        return was_stopped;
    }
    const int64_t now = ggml_time_us();
    if (now - t_last_poll_us >= poll_interval_us) {
        t_last_poll_us = now;
        was_stopped    = options.interrupt();
    }
    return was_stopped;
}

std::vector<slice_pixels> engine::pixels(const image & image) const {
    const log_scope log(options.verbose);

    const auto prompt = tokenized(media_marker, { image }, false);

    std::vector<slice_pixels> res;
    for (const auto & piece : prompt.pieces) {
        if (piece.visual()) {
            const auto slices = pixels_of(vision.get(), piece.chunk);
            res.insert(res.end(), slices.begin(), slices.end());
        }
    }
    return res;
}

//
// what there is to know
//

run_report engine::report() const {
    auto res = counts;

    const auto stages = report_of(ctx.get());

    res.stage0_ms       = stages.t_stage0_ms;
    res.choose_ms       = stages.t_choose_ms;
    res.later_ms        = stages.t_later_ms;
    res.recalled_tokens = stages.n_recalled;
    res.graphs_reused   = llama_perf_context(ctx.get()).n_reused;

    for (int32_t s = 0; s < stages.n_stages; ++s) {
        res.first_layers.push_back(stages.first_layer[s]);
        res.visual_in_stage.push_back(s == 0 ? res.visual_tokens : (int64_t) pyfastv_get_kept(ctx.get(), 0, s - 1, nullptr, 0));
        res.kv_bytes_used.push_back(stages.kv_bytes_used[s]);
        res.kv_bytes_allocated.push_back(stages.kv_bytes[s]);
    }
    res.kv_bytes_used_stock      = stages.kv_bytes_used_stock;
    res.kv_bytes_allocated_stock = stages.kv_bytes_stock;
    res.archive_bytes            = stages.archive_bytes + stages.similarity_bytes;

    return res;
}

} // namespace pyfastv
