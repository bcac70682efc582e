#pragma once

#include "runner/checkpoints.h"
#include "runner/encoder_cache.h"
#include "runner/encoder_files.h"
#include "runner/options.h"
#include "runner/pixels.h"
#include "runner/prompt.h"
#include "runner/slot.h"
#include "runner/turbo.h"
#include "runner/vocab.h"

#include "vision/picture_shape.h"

#include "ggml-cpp.h"
#include "llama-cpp.h"
#include "pyfastv.h"

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace pyfastv {

// One model, its vision encoder, and one context that requests share: each has a slot, a sequence of a unified KV cache. A
// slot keeps what it holds after its request; a request whose prompt begins in the same way goes on from there, or from a
// copy of it.
//
// Requests are computed in one of two ways. prepare(), start() and step() are for one thread that computes for all: a step
// is a batch with a token of every slot that generates, and then a bounded piece of the prompts of those that start.
// open(), read(), begin() and next() are for threads that wait each for its own request: one of them computes for all that wait, and
// what nobody waits for stays where it is.
//
// Uses llama.h, mtmd.h and pyfastv.h only. Throws error (runner/errors.h), and interrupted where options.interrupt said stop;
// afterwards the engine is usable. What goes wrong with one request ends that one. Any thread may call any function.
class engine {
public:
    explicit engine(const engine_options & options);
    ~engine();

    engine(const engine &) = delete;

    // The schedule of requests that bring none, from now on; empties the context. error(option) if a request is computed.
    void set_fastv(const std::string & spec); // the language of pyfastv_parse(); empty: all visual tokens stay

    // Can a request with this schedule run beside those that there are: do its cuts lie at the layers of the context's, with as
    // many KV cells? Computes nothing, and waits for nobody.
    bool fits(const std::string & spec) const;

    // Then nothing; else the context has its layers from now on, and is empty. error(option) if a request is computed.
    void fit(const std::string & spec);

    // [cut] the layer that a schedule asks for, and where the cut has to be (runner/request_schedule.h). error(option)
    std::vector<std::pair<int32_t, int32_t>> fit_layers(const std::string & spec) const { return pyfastv::fit_layers(model.get(), spec); }

    // What open(), pixels() and embed() do to pictures from now on; empties the context.
    void set_turbo  (const std::string & spec); // the language of pyfastv_turbo_parse(); empty: nothing
    void set_reducer(const std::string & spec); // the language of parse_reducer() (settings/reducer.h); the context stays
    void set_skip   (const std::string & spec); // the language of pyfastv_skip_parse(); the context stays

    // Are these settings right for this model?
    void check(const picture_options & pictures) const;

    // A request that can be started: tokens, prepared pictures, samplers. One with pictures waits while the
    // encoder runs with another Turbo, or others are prepared that leave other things out. All that is wrong with a request is found here, save for a picture that is too large
    // for a ubatch when reduced. fastv: its schedule; none: as set. n_probs: how many of the likeliest tokens each event names; 0:
    // none.
    slot_request prepare(const std::string & text, const std::vector<image> & images, bool add_bos, const picture_options & pictures,
            const std::optional<std::string> & fastv, const sampling_options & sampling, int64_t n_probs,
            const text_spans & spans = {}) const;

    // The same for a text that is tokens already.
    slot_request prepare_tokens(const std::vector<llama_token> & tokens, const std::optional<std::string> & fastv,
            const sampling_options & sampling, int64_t n_probs) const;

    // Of a text that could be a prompt. add_special: with the tokens that the vocabulary puts around a text; parse_special: the
    // spelling of a special token is that token.
    std::vector<llama_token> tokens_of_text(const std::string & text, bool add_special, bool parse_special) const;

    // The bytes of tokens, special ones spelt. error(option) for a number that is no token.
    std::string text_of(const std::vector<llama_token> & tokens) const;

    // Give a request an idle slot, and return its number; fit() for it. error(option) if no slot is idle.
    int64_t start(slot_request request, bool cache_prompt = true); // false: slot_request::cache_prompt

    // Whatever happened since the last call. After a token of each, it computes one thing at most, that is no longer than a
    // batch of n_ubatch rows through all layers: rows of text, or of a picture; rows of a picture that was chosen from through
    // the layers behind a cut; or a choice. A slice of a picture is encoded, and a picture is reduced, at once; cancelling
    // ends that, too.
    std::vector<slot_event> step();

    // How far the prompts of started requests are, of those that are not read to their end.
    struct prompt_read {
        int64_t id;
        int64_t n_done; // tokens, those that were in the slot included
        int64_t n_tokens;
        int64_t n_cached;
    };
    std::vector<prompt_read> reading() const;

    // Give a prompt, with one marker() for each picture, a slot, and return the request's number. `reserve` tokens have to fit
    // behind it. Where all slots are taken, it ends the oldest opened request that nobody waits for; fit() for it. pictures,
    // fastv: none: as set.
    int64_t open(const std::string & text, const std::vector<image> & images, bool add_bos, int64_t reserve,
            const std::optional<picture_options> & pictures, const std::optional<std::string> & fastv,
            const text_spans & spans = {});

    // Read it, and wait. progress(done, all) counts prompt tokens. An exception ends the request, error(closed) says that it
    // was cancelled.
    using progress_fn = std::function<void(int64_t done, int64_t all)>;

    void read(int64_t id, const progress_fn & progress);

    // How an opened request goes on. n_probs: as in prepare().
    void begin(int64_t id, const sampling_options & sampling, int64_t n_probs = 0);

    // The next token, its bytes and what was asked for of its probability, none when finished; why_finished(): "stop", "length",
    // "cancelled", or null.
    std::optional<slot_event> next(int64_t id);
    const char * why_finished(int64_t id) const;

    // Evaluate one token behind what an opened request holds.
    void feed(int64_t id, llama_token token);

    // F32 [n_vocab] of the last token that was evaluated for an opened request. error(option) if another one was computed
    // since it was begun.
    std::vector<float> logits(int64_t id);

    // The request ends with the next step, its own computation at once. Unknown numbers are ignored.
    void cancel(int64_t id);

    // What the slot of an opened request holds, which ends; for restore() by an engine with the same model, the same types and as
    // many layers behind each cut. error(closed): its slot is another's.
    std::vector<uint8_t> save(int64_t id);

    // Gives it an idle slot, from which requests go on that begin in the same way, and returns a number for at() to find it by;
    // fit() for it. Where no slot is idle, it ends the oldest opened request that nobody waits for. error(option): it is none, or of
    // another kind of context; the slot is empty then.
    int64_t restore(const uint8_t * state, size_t size);

    // Forget the context and every request.
    void reset();

    // What becomes of a picture of this size; enlarge: as of image. error(option): there is no encoder; error(image).
    pyfastv_picture_shape shape_of(uint32_t width, uint32_t height, bool enlarge) const;

    // what the vision encoder sees of a picture, slice by slice; evaluates nothing
    std::vector<slice_pixels> pixels(const image & image) const;
    // What the encoder and the projector make of a picture: each slice, in order. The context stays.
    std::vector<encoded_slice> embed(const image & picture);

    bool    idle()   const;
    int32_t n_idle() const;

    int64_t newest() const { return n_requests; } // the number of the last request

    run_report report(int64_t id) const; // of a request that runs, or has ended lately

    // Of a request, running or ended, whose slot no other has taken.

    std::vector<int32_t>      kept  (int64_t id, int32_t cut) const; // at a cut; negative ones count from the last
    std::vector<float>        scores(int64_t id, int32_t cut) const;
    std::vector<pyfastv_grid> grids (int64_t id) const;
    // in its pictures, one entry a token that entered: the patch, of its slice, whose position it has
    std::vector<int32_t>      places(int64_t id) const;
    // [picture][slice]
    std::vector<std::vector<slot_event::seen_slice>> pictures(int64_t id) const;

    int32_t n_slots() const { return (int32_t) all.size(); }
    int32_t n_ctx()   const { return n_ctx_slot; }
    int32_t n_vocab() const { return llama_vocab_n_tokens(vocab); }
    int32_t n_layer() const { return llama_model_n_layer(model.get()); }
    int32_t n_embd_inp() const { return llama_model_n_embd_inp(model.get()); }

    const std::string & marker() const { return media_marker; }
    const char *        chat_template() const { return llama_model_chat_template(model.get(), nullptr); }
    std::string         bos_token()   const { return pyfastv::bos_token(vocab); }
    std::string         eos_token()   const { return pyfastv::eos_token(vocab); }
    // what nobody can type: in a prompt's `literal` stretches their names are text
    std::vector<control_token> control_tokens() const { return pyfastv::control_tokens(vocab); }
    std::string         description() const { return describe(model.get()); }

private:
    // rows of one slot in a shared batch; the logits of the last are read if its prompt, or a question in it, ends with it
    struct part {
        slot *                    s;
        std::vector<prompt_piece> pieces; // text
        bool                      reads;
        bool                      answers = false; // of an answer of an earlier turn; then all of the batch are
    };
    using events = std::vector<slot_event>;

    // One thread at a time has the engine.
    class turn {
    public:
        explicit turn(const engine & of);
        ~turn();
        turn(const turn &) = delete;

    private:
        const engine & of;
    };

    slot_request  prepare(const std::string & text, const std::vector<image> & images, bool add_bos, const picture_options & pictures,
            const std::optional<std::string> & fastv, int64_t reserve, const text_spans & spans) const;
    void          check_room(const slot_request & request, int64_t reserve) const; // for its prompt, and behind it
    slot_sampling make_sampling(const sampling_options & sampling, int64_t n_probs) const;
    int64_t       give_slot(slot_request request);

    // opened requests (engine_open.cpp)

    slot_event wait(int64_t id, const progress_fn & progress);
    bool       all_have_come() const; // those who took part in the last computation
    void       supersede();           // the oldest that nobody waits for, if no slot is idle
    std::vector<float> logits_of(const slot & s);
    slot &       at(int64_t id);      // error(closed) if its slot is another's
    const slot & at(int64_t id) const;

    void step(events & out);
    void tell(events & out); // moves what happened to opened requests to their slots

    // what slots hold (engine_reuse.cpp)

    size_t n_common(const slot & s, const slot_request & request) const; // pieces, never all of the prompt
    size_t in_reach(const slot & s, size_t n) const;    // of its first n pieces, those that it can keep
    size_t copyable(const slot & from, size_t n) const; // those that another slot can have
    bool   forgot  (const slot & s, size_t n) const; // sliding windows lack what is seen from behind the first n pieces
    void   keep    (slot & s, size_t n);             // of the first n pieces what is possible
    void   copy    (const slot & from, slot & to, size_t n);
    void   clear   (slot & s);
    void   hold    (slot & s, size_t n);             // that is what its sequence has

    slot & place(const slot_request & request); // an idle slot, that holds what is known of the beginning
    bool   take_over(slot & s);             // from a slot that holds more of its prompt by now
    bool   evict();                         // what the idle slot holds that was not used for longest; false: there is nothing
    void   advance(slot & s, const std::vector<prompt_piece> & pieces, llama_pos n_past);

    // of recurrent layers

    std::vector<size_t> marks_of(const slot_request & request) const; // slot::marks
    void remember(slot & s);           // a checkpoint, if it is at a mark
    bool go_back (slot & s, size_t n); // to its last checkpoint behind at most n pieces; false: it is as before, or empty

    // computing (engine_step.cpp, engine_pictures.cpp)

    void generate(events & out);
    void prefill (events & out);
    bool prefill_text   (events & out);
    bool prefill_picture(events & out);
    bool prefill_later  (events & out); // a piece of a flush

    void    run(const std::vector<part> & parts, events & out); // batch, read, sample; if that fails, each alone
    int32_t decode(const std::vector<part> & parts);
    int32_t decode_visual(slot & s, const prompt_piece & piece);
    void    no_room(slot & s, events & out);                    // waits, or ends
    int64_t n_waiting(const slot & s) const;                    // rows that may wait at the first cut

    // What was asked in its prompt is read. entered_before: what had passed the cuts; logits: null: it ends with a picture.
    void asked(slot & s, const std::vector<int32_t> & entered_before, const float * logits, events & out);

    // Brings the picture that is next to its rows, by one run of the encoder at most; true: they are there.
    bool fetch(slot & s);

    // From the caches, or from the encoder if it may run, once. Null: not there, or the request was cancelled. Valid until the
    // next call.
    const encoded_slice * encode(slot & s, const prompt_piece & piece, bool & may_run);

    // of every part, null where nothing is read; empty if the later layers could not be run
    std::vector<const float *> read_logits(const std::vector<part> & parts);

    // ends of requests (engine_sample.cpp)

    void        answer(slot & s, const float * logits, events & out); // its prompt was read, or a token of its own
    void        sample(slot & s, const float * logits, events & out);
    llama_token pick  (slot & s, const float * logits) const; // none: no token is allowed
    bool        has_all(const slot & s) const;                // tokens that it can have
    void        add_probs(slot_event & event, const float * logits, const slot_sampling & how) const;

    slot_event event_of(const slot & s) const;

    void finish(slot & s, slot_event event, const char * reason, events & out);
    void fail  (slot & s, error reason, events & out);
    void end   (slot & s, slot_event & event);
    void end_cancelled(events & out);

    // what there is to know (engine_report.cpp)

    run_report           report(const slot & s) const;

    std::vector<int32_t> kept(const slot & s, int32_t cut) const;
    std::vector<int32_t> entered(const slot & s) const; // [visual token] how many cuts it passed
    int32_t              check_cut(const slot & s, int32_t cut) const;

    std::vector<pyfastv_grid> grids(const slot & s) const;

    // schedules (engine_schedules.cpp)

    bool fits    (const request_schedule & schedule) const;
    void make_fit(const request_schedule & schedule);
    void attach  (const request_schedule & schedule);

    // from now on; what it holds of pictures was chosen by it
    void           choose_by(slot & s, const request_schedule & schedule);
    pyfastv_status set_schedule(const slot & s, const request_schedule & schedule); // it holds no visual tokens

    void check_idle() const;
    void require_memory() const;
    void forget();

    slot * find(int64_t id);

    // the slots in this state that are computed now, by the age of their requests
    std::vector<slot *> in(slot::state state);

    class working_scope {
    public:
        working_scope(engine & of, int64_t id) : of(of) { set(id); }
        ~working_scope() { set(0); }
        working_scope(const working_scope &) = delete;

    private:
        void set(int64_t id) {
            const std::lock_guard<std::mutex> lock(of.mutex);
            of.working_id   = id;
            of.stop_working = of.cancelled.count(id) > 0;
        }

        engine & of;
    };

    // f(), during which cancelling the request of this slot stops the computation
    template <typename F> void working(const slot & s, F && f) {
        const working_scope scope(*this, s.id);
        f();
    }

    bool is_cancelled(const slot & s);

    // polls options.interrupt, at most every few milliseconds
    bool stop_requested();

    engine_options options;
    std::string    media_marker;
    interrupt_fn   stop; // stop_requested()

    llama_model_ptr     model;
    const llama_vocab * vocab = nullptr;
    llama_context_ptr   ctx;
    mtmd_context_ptr    vision;
    int32_t             n_ctx_slot  = 0;
    bool                lost_memory = false; // what stages take and give back could not be had again

    encoder_cache               encoded;
    std::unique_ptr<encoder_files> encoded_files; // null: none
    checkpoint_store            checkpoints;
    bool                        recurrent = false; // it has layers whose states do not go back
    std::unique_ptr<turbo_gate> gate;    // of vision
    ggml_backend_ptr            backend; // for matrix products of the reducers; null until one is needed
    picture_options             in_force; // of open()
    request_schedule            by_default;
    mutable std::mutex          attaching; // of stages to ctx, and asking which

    struct ended {
        run_report   report;
        const char * finish;
    };

    std::vector<slot>        all;
    std::map<int64_t, ended> lately_ended; // opened requests, whose slots may be another's by now
    int64_t                  n_requests    = 0;
    size_t                   last_kind     = 0;       // of the pieces of prompts
    const slot *             decoded_last  = nullptr; // alone, and read: its logits are the context's last

    std::mutex        mutex; // of the following
    std::set<int64_t> cancelled;
    int64_t           working_id = 0;
    std::atomic<bool> stop_working { false };
    int64_t           t_last_poll_us = 0;
    bool              was_stopped    = false; // by options.interrupt

    mutable std::mutex              turns; // of the following
    mutable std::condition_variable turn_ended;
    mutable bool                    taken = false;
    std::set<int64_t>               waited_for; // opened requests
    std::set<int64_t>               computed;   // those of them that the computation is for
    bool                            for_started = false; // it is for the others
};

} // namespace pyfastv
