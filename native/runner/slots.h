#pragma once

#include "runner/encoder_cache.h"
#include "runner/options.h"
#include "runner/prompt.h"
#include "runner/slot.h"
#include "runner/turbo.h"
#include "runner/vocab.h"

#include "ggml-cpp.h"
#include "llama-cpp.h"
#include "pyfastv.h"

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace pyfastv {

// One model, its vision encoder, and one context that several requests share: each has a slot, a sequence of a unified
// KV cache. step() runs a batch with a token of every slot that generates, and then a bounded piece of the prompts of
// those that start. A slot keeps what it holds after its request; a request whose prompt begins in the same way goes on
// from there, or from a copy of it.
//
// Uses llama.h, mtmd.h and pyfastv.h only. Throws error (runner/errors.h) from everything but step(), whose errors are
// events of the requests that they end. Used by one thread at a time, save for
// prepare() and cancel().
class slots {
public:
    // options.n_ctx: tokens of each slot. 1 <= n_slots <= llama_max_parallel_sequences(). options.interrupt is not used.
    slots(const engine_options & options, int64_t n_slots);
    ~slots();

    slots(const slots &) = delete;

    // The schedule of all requests that are started from now on; empties the context. error(option) unless idle().
    void set_fastv(const std::string & spec); // the language of pyfastv_parse()
    void clear_fastv();

    // Are these settings right for this model?
    void check(const picture_options & pictures) const;

    // A request that can be started: tokens, prepared pictures, samplers. Any thread; one with pictures waits while the
    // encoder runs with another Turbo. All that is wrong with a request is found here, save for a picture that is too large
    // for a ubatch when reduced. n_probs: how many of the likeliest tokens each event names; 0: none.
    slot_request prepare(const std::string & text, const std::vector<image> & images, bool add_bos, const picture_options & pictures,
            const sampling_options & sampling, int64_t n_probs) const;

    // Give a request an idle slot, and return its number. error(option) if no slot is idle.
    int64_t start(slot_request request);

    // Whatever happened since the last call. No computation is longer than a batch of n_ubatch rows or a picture.
    std::vector<slot_event> step();

    // Any thread: the request ends with the next step, its own computation at once. Unknown numbers are ignored.
    void cancel(int64_t id);

    // Forget the context and every request.
    void reset();

    bool    idle()   const;
    int32_t n_idle() const;

    int32_t n_slots() const { return (int32_t) all.size(); }
    int32_t n_ctx()   const { return n_ctx_slot; }
    int32_t n_vocab() const { return llama_vocab_n_tokens(vocab); }
    int32_t n_layer() const { return llama_model_n_layer(model.get()); }

    const std::string & marker() const { return media_marker; }
    const char *        chat_template() const { return llama_model_chat_template(model.get(), nullptr); }
    std::string         bos_token()   const { return pyfastv::bos_token(vocab); }
    std::string         eos_token()   const { return pyfastv::eos_token(vocab); }
    std::string         description() const { return describe(model.get()); }

private:
    // rows of one slot in a shared batch; the logits of the last are read if its prompt ends with it
    struct part {
        slot *                    s;
        std::vector<prompt_piece> pieces; // text
        bool                      reads;
    };
    using events = std::vector<slot_event>;

    // what slots hold (slots_reuse.cpp)

    size_t n_common(const slot & s, const prompt & wanted) const; // pieces, never all of the prompt
    bool   can_copy(const slot & from, size_t n) const;
    bool   forgot  (const slot & s, size_t n) const; // sliding windows lack what is seen from behind the first n pieces
    void   keep    (slot & s, size_t n);             // the first n pieces; nothing if that is not possible
    void   copy    (const slot & from, slot & to, size_t n);
    void   clear   (slot & s);

    slot & place(const prompt & wanted);    // an idle slot, that holds what is known of the beginning
    bool   take_over(slot & s);             // from a slot that holds more of its prompt by now
    bool   evict();                         // what the idle slot holds that was not used for longest; false: there is nothing
    void   advance(slot & s, const std::vector<prompt_piece> & pieces, llama_pos n_past);

    // computing (slots_step.cpp)

    void generate(events & out);
    void prefill (events & out);
    bool prefill_text   (events & out);
    bool prefill_picture(events & out);

    void    run(const std::vector<part> & parts, events & out); // batch, read, sample; if that fails, each alone
    int32_t decode(const std::vector<part> & parts);
    int32_t decode_visual(slot & s, const prompt_piece & piece);
    void    no_room(slot & s, events & out);                    // waits, or ends

    // Brings the picture that is next to its rows, by one run of the encoder at most; true: they are there.
    bool fetch(slot & s);

    // From the cache, or from the encoder if it may run, once. Null: not there, or the request was cancelled. Valid until the
    // next call.
    const encoded_slice * encode(slot & s, const prompt_piece & piece, bool & may_run);

    // of every part, null where nothing is read; empty if the later layers could not be run
    std::vector<const float *> read_logits(const std::vector<part> & parts);

    // ends of requests

    void        sample(slot & s, const float * logits, events & out);
    llama_token pick  (slot & s, const float * logits) const; // none: the grammar allows no token
    void        add_probs(slot_event & event, const float * logits, int32_t n) const;

    void finish(slot & s, slot_event event, const char * reason, events & out);
    void fail  (slot & s, error reason, events & out);
    void end   (slot & s, slot_event & event);
    void end_cancelled(events & out);

    run_report report(const slot & s) const;

    std::vector<int32_t> kept(const slot & s, int32_t cut) const;
    std::vector<int32_t> entered(const slot & s) const; // [visual token] how many cuts it passed

    void attach(const pyfastv_params * params);
    void check_idle() const;
    void require_memory() const;

    slot * find(int64_t id);

    // the slots in this state, by the age of their requests
    std::vector<slot *> in(slot::state state);

    // f(), during which cancelling the request of this slot stops the computation
    template <typename F> void working(const slot & s, F && f);

    bool is_cancelled(const slot & s);

    engine_options options;
    std::string    media_marker;
    interrupt_fn   stop;

    llama_model_ptr     model;
    const llama_vocab * vocab = nullptr;
    llama_context_ptr   ctx;
    mtmd_context_ptr    vision;
    int32_t             n_ctx_slot  = 0;
    int32_t             n_cuts      = 0;
    bool                lost_memory = false; // what stages take and give back could not be had again

    encoder_cache               encoded;
    std::unique_ptr<turbo_gate> gate;    // of vision
    ggml_backend_ptr            backend; // for matrix products of the reducers; null until one is needed

    std::vector<slot> all;
    int64_t           n_requests    = 0;
    bool              text_was_last = false; // of the pieces of prompts

    std::mutex        mutex; // of the following
    std::set<int64_t> cancelled;
    int64_t           working_id = 0;
    std::atomic<bool> stop_working { false };
};

} // namespace pyfastv
