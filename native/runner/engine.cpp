#include "runner/engine.h"

#include "guard/workers.h"
#include "runner/errors.h"
#include "runner/load.h"
#include "runner/log.h"
#include "runner/sampler.h"
#include "runner/status.h"
#include "runner/turbo.h"

#include "ggml.h"

#include <algorithm>
#include <utility>

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace pyfastv {

constexpr int64_t poll_interval_us = 10'000;
constexpr size_t  n_remembered     = 16; // ends of requests, for each slot

static std::vector<std::vector<slot_event::seen_slice>> pictures_of(const std::vector<prompt_piece> & pieces) {
    std::vector<std::vector<slot_event::seen_slice>> res;

    const std::string * last = nullptr;
    for (const auto & piece : pieces) {
        if (piece.visual()) {
            if (!last || piece.image_id != *last) {
                res.emplace_back();
            }
            res.back().push_back({ piece.patches, places_of(piece) });
            last = &piece.image_id;
        }
    }
    return res;
}

std::vector<std::vector<slot_event::seen_slice>> engine::pictures(int64_t id) const {
    const turn mine(*this);

    return pictures_of(at(id).evaluated);
}

engine::engine(const engine_options & options_in) :
        options(options_in), media_marker(random_marker()), encoded(options_in.encoder_cache_bytes),
        checkpoints(options_in.checkpoint_bytes) {
    check_options(options);
    resolve_threads(options);

    const int64_t n_slots = options.n_slots;
    const auto    most    = std::min<int64_t>({ (int64_t) llama_max_parallel_sequences(), options.n_batch, options.n_ubatch });
    if (n_slots < 1 || n_slots > most) {
        throw error(error_kind::option, "slots = " + std::to_string(n_slots) + ": there can be 1 to " + std::to_string(most) +
                " (llama.cpp's sequences, and no more than n_batch and n_ubatch)");
    }

    if (options.mmproj_path && options.encoder_cache_dir) {
        encoded_files = std::make_unique<encoder_files>(*options.encoder_cache_dir, options.encoder_cache_made_by, options.encoder_cache_disk_bytes);
    }
    stop  = [this] { return stop_requested(); };
    model = load_model(options);
    vocab = llama_model_get_vocab(model.get());
    recurrent = llama_model_is_recurrent(model.get()) || llama_model_is_hybrid(model.get());

    const int64_t n_ctx = options.n_ctx > 0 ? options.n_ctx : std::min<int64_t>(llama_model_n_ctx_train(model.get()), default_n_ctx);
    if (n_ctx*n_slots > max_n_ctx) {
        throw error(error_kind::option, n_slots == 1 ? "n_ctx = " + std::to_string(n_ctx) + ": it can be 1 to " + std::to_string(max_n_ctx) :
                std::to_string(n_slots) + " slots of n_ctx = " + std::to_string(n_ctx) +
                " tokens are more than the " + std::to_string(max_n_ctx) + " that a context can have");
    }
    n_ctx_slot = (int32_t) n_ctx;
    ctx = make_context(model.get(), options, { (uint32_t) (n_ctx*n_slots), (uint32_t) n_slots }, stop);
    if (options.mmproj_path) {
        vision = load_vision(model.get(), options, media_marker, stop);
    }
    gate = std::make_unique<turbo_gate>(vision.get());

    for (int32_t i = 0; i < n_slots; ++i) {
        all.emplace_back(i);
    }
}

engine::~engine() {
    vision.reset();
    ctx.reset();
    model.reset();

#ifdef __GLIBC__
    // glibc keeps freed buffers of up to 32 MB each
    malloc_trim(0);
#endif
}

//
// turns
//

engine::turn::turn(const engine & of) : of(of) {
    std::unique_lock<std::mutex> lock(of.turns);
    of.turn_ended.wait(lock, [&] { return !of.taken; });
    of.taken = true;
}

engine::turn::~turn() {
    const std::lock_guard<std::mutex> lock(of.turns);
    of.taken = false;
    of.turn_ended.notify_all();
}

bool engine::stop_requested() {
    if (stop_working.load(std::memory_order_relaxed)) {
        return true;
    }
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

//
// settings
//

void engine::set_turbo(const std::string & spec) {
    const turn mine(*this);

    gate->with(spec, std::nullopt, [] {});
    check_idle();
    in_force.turbo = spec;
    forget();
}

void engine::set_reducer(const std::string & spec) {
    if (!spec.empty()) {
        parse_reducer_for(model.get(), spec);
    }
    const turn mine(*this);
    in_force.reducer = spec;
}

void engine::set_skip(const std::string & spec) {
    const turn mine(*this);

    gate->with(in_force.turbo, spec, [] {});
    in_force.skip = spec;
}

void engine::check_idle() const {
    const std::lock_guard<std::mutex> lock(turns);

    const auto n = std::count_if(all.begin(), all.end(), [&](const slot & s) {
        return !s.idle() && (!s.request.opened || waited_for.count(s.id) > 0);
    });

    if (n > 0) {
        throw error(error_kind::option, "settings can be changed when no request runs; " + std::to_string(n) + " do");
    }
}

void engine::require_memory() const {
    if (lost_memory) {
        throw error(error_kind::out_of_memory, "the context lost its KV cache when memory ran out: load the model again");
    }
}

//
// requests
//

void engine::check(const picture_options & pictures) const {
    gate->with(pictures.turbo, pictures.skip, [] {});
    if (!pictures.reducer.empty()) {
        parse_reducer_for(model.get(), pictures.reducer);
    }
}

slot_sampling engine::make_sampling(const sampling_options & sampling, int64_t n_probs) const {
    check_whole("n_probs", n_probs, 0, n_vocab());

    const int32_t n_excluding = (sampling.grammar ? 1 : 0) + (sampling.logit_bias.empty() && !sampling.ignore_eos ? 0 : 1);

    return { make_sampler(vocab, sampling, n_ctx_slot), n_excluding, (int32_t) sampling.max_tokens, (int32_t) n_probs,
        sampling.grammar && !sampling.grammar_triggers.empty(), tokens_named(vocab, sampling.preserved),
        !sampling.skip_special_tokens };
}

slot_request engine::prepare(const std::string & text, const std::vector<image> & images, bool add_bos, const picture_options & pictures,
        const std::optional<std::string> & fastv, int64_t reserve, const text_spans & spans) const {
    check_whole("reserve", reserve, 0, INT32_MAX);

    slot_request res;
    auto &       wanted = res.wanted;

    res.schedule = fastv ? parse_request_schedule(*fastv, n_layer()) : by_default;

    const auto tokenized = [&] {
        wanted = tokenize(model.get(), vision.get(), pictures, media_marker, text, images, add_bos, n_ctx_slot, spans);
    };
    if (images.empty()) {
        tokenized();
    } else {
        gate->with(pictures.turbo, pictures.skip, tokenized);
    }
    if (!pictures.reducer.empty()) {
        plan_reduction(wanted, parse_reducer_for(model.get(), pictures.reducer));
    }

    check_room(res, reserve);

    return res;
}

void engine::check_room(const slot_request & request, int64_t reserve) const {
    const auto & wanted = request.wanted;

    if (wanted.n_tokens == 0) {
        throw error(error_kind::option, "the prompt is empty");
    }
    if (wanted.n_tokens + reserve > n_ctx_slot) {
        error err(error_kind::context_length, "the prompt has " + std::to_string(wanted.n_tokens) + " tokens (" +
                std::to_string(wanted.n_visual) + " of them visual) and " + std::to_string(reserve) + " more " +
                (reserve == 1 ? "has" : "have") + " to fit behind it, but n_ctx is " + std::to_string(n_ctx_slot) +
                (n_slots() > 1 ? " for each request" : "") + ": use a larger n_ctx, fewer pictures or a shorter prompt");
        err.n_tokens = wanted.n_tokens;
        err.n_ctx    = n_ctx_slot;
        throw err;
    }
    for (const auto & piece : wanted.pieces) {
        if (piece.visual() && piece.reducer.empty()) {
            check_fits_ubatch(vision.get(), ctx.get(), piece);
        }
    }
}

slot_request engine::prepare(const std::string & text, const std::vector<image> & images, bool add_bos, const picture_options & pictures,
        const std::optional<std::string> & fastv, const sampling_options & sampling, int64_t n_probs,
        const text_spans & spans) const {
    const log_scope log(options.verbose);

    auto how = make_sampling(sampling, n_probs);
    auto res = prepare(text, images, add_bos, pictures, fastv, 1, spans);

    if (res.wanted.pieces.back().visual()) {
        throw error(error_kind::option, "the prompt ends with a picture: nothing behind it asks for an answer");
    }
    res.sampling = std::move(how);

    return res;
}

slot_request engine::prepare_tokens(const std::vector<llama_token> & tokens, const std::optional<std::string> & fastv,
        const sampling_options & sampling, int64_t n_probs) const {
    const log_scope log(options.verbose);

    slot_request res;
    res.sampling = make_sampling(sampling, n_probs);
    res.schedule = fastv ? parse_request_schedule(*fastv, n_layer()) : by_default;
    res.wanted   = prompt_of(vocab, tokens, n_ctx_slot);
    check_room(res, 1);

    return res;
}

std::vector<llama_token> engine::tokens_of_text(const std::string & text, bool add_special, bool parse_special) const {
    const log_scope log(options.verbose);

    return pyfastv::tokens_of(model.get(), text, add_special, parse_special, n_ctx_slot);
}

std::string engine::text_of(const std::vector<llama_token> & tokens) const {
    check_tokens(vocab, tokens);

    std::string res;
    for (const auto token : tokens) {
        res += piece_of(vocab, token, /* special */ true);
    }
    return res;
}

int64_t engine::start(slot_request request, bool cache_prompt) {
    const log_scope log(options.verbose);

    if (request.wanted.pieces.empty()) {
        throw error(error_kind::option, "this request was started already");
    }
    request.cache_prompt = cache_prompt;

    const turn mine(*this);

    return give_slot(std::move(request));
}

int64_t engine::give_slot(slot_request request) {
    require_memory();
    if (n_idle() == 0) {
        throw error(error_kind::option, "all " + std::to_string(n_slots()) + " slots are busy");
    }

    const int64_t t0 = ggml_time_us();

    make_fit(request.schedule);

    auto   marks = marks_of(request);
    auto & s     = place(request);
    choose_by(s, request.schedule);

    s.now        = slot::state::starting;
    s.id         = s.last_used = ++n_requests;
    s.marks      = std::move(marks);
    s.waits      = false;
    s.shares_no_batch = false;
    s.t_start_us = t0;
    s.finish     = nullptr;
    s.logits.clear();
    s.untold.clear();
    s.forget_picture();

    s.counts = {};
    s.counts.prompt_tokens  = request.wanted.n_tokens;
    s.counts.visual_tokens  = request.wanted.n_visual;
    s.counts.encoded_tokens = request.wanted.n_encoded;
    s.counts.patches        = request.wanted.n_patches;
    s.counts.skipped_tokens = request.wanted.n_skipped;
    s.counts.cached_tokens  = s.n_tokens;
    s.n_reused_before = llama_perf_context(ctx.get()).n_reused;
    s.request         = std::move(request);

    return s.id;
}

void engine::cancel(int64_t id) {
    const std::lock_guard<std::mutex> lock(mutex);

    cancelled.insert(id);
    if (id == working_id) {
        stop_working = true;
    }
}

void engine::end_cancelled(events & out) {
    std::set<int64_t> ids;
    {
        const std::lock_guard<std::mutex> lock(mutex);
        ids.swap(cancelled);
    }
    for (const auto id : ids) {
        if (slot * s = find(id)) {
            finish(*s, event_of(*s), "cancelled", out);
        }
    }
}

std::vector<slot_event> engine::step() {
    const log_scope log(options.verbose);
    const turn      mine(*this);

    events out;
    computed.clear();
    for_started = true;
    try {
        step(out);
    } catch (...) {
        for_started = false;
        throw;
    }
    for_started = false;
    tell(out);

    return out;
}

void engine::step(events & out) {
    start_workers(most_threads(options));

    was_stopped = false;
    out.reserve(3*all.size()); // more than there can be: none is lost when memory runs out
    end_cancelled(out);
    generate(out);
    prefill(out);
    end_cancelled(out);
}

std::vector<engine::prompt_read> engine::reading() const {
    const turn mine(*this);

    std::vector<prompt_read> res;
    for (const auto & s : all) {
        if (s.now == slot::state::starting && !s.request.opened) {
            res.push_back({ s.id, s.n_done(), s.counts.prompt_tokens, s.counts.cached_tokens });
        }
    }
    return res;
}

void engine::reset() {
    const turn mine(*this);
    forget();
}

void engine::forget() {
    llama_memory_clear(llama_get_memory(ctx.get()), false);

    for (auto & s : all) {
        auto nobody = event_of(s);
        clear(s);
        end(s, nobody);
        s.finish = nullptr;
        s.untold.clear();
    }
    lately_ended.clear();

    const std::lock_guard<std::mutex> lock(mutex);
    cancelled.clear();
}

bool engine::idle() const {
    return n_idle() == n_slots();
}

int32_t engine::n_idle() const {
    return (int32_t) std::count_if(all.begin(), all.end(), [](const slot & s) { return s.idle(); });
}

slot * engine::find(int64_t id) {
    const auto it = std::find_if(all.begin(), all.end(), [id](const slot & s) { return !s.idle() && s.id == id; });

    return it == all.end() ? nullptr : &*it;
}

//
// ends
//

slot_event engine::event_of(const slot & s) const {
    slot_event res;
    res.id     = s.id;
    res.opened = s.request.opened;
    return res;
}

void engine::end(slot & s, slot_event & event) {
    if (!s.idle() && !event.opened) {
        // a request ends, whether or not there is memory to say what it did
        error_of([&] {
            event.report = report(s);
            for (int32_t cut = 0; cut < s.schedule.n_cuts(); ++cut) {
                event.kept.push_back(kept(s, cut));
            }
            event.grids    = grids(s);
            event.pictures = pictures_of(s.evaluated);
        });
    }

    if (!s.idle() && event.opened) {
        error_of([&] { lately_ended[s.id] = { report(s), event.finish }; });
        if (lately_ended.size() > n_remembered*all.size()) {
            lately_ended.erase(lately_ended.begin());
        }
    }

    if (s.n_rows > 0) {
        keep(s, s.evaluated.size()); // a slot holds whole pictures
    }
    s.now      = slot::state::idle;
    s.finish   = event.finish;
    s.request  = {};
    s.flushing = {};
    s.forget_picture();

    // there may be room for others now
    for (auto & other : all) {
        other.waits = false;
    }
}

void engine::finish(slot & s, slot_event event, const char * reason, events & out) {
    event.finish = reason;
    end(s, event);
    out.push_back(std::move(event));
}

void engine::fail(slot & s, error reason, events & out) {
    auto event = event_of(s);
    event.failure = std::move(reason);
    end(s, event);
    out.push_back(std::move(event));
}

} // namespace pyfastv
