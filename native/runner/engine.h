#pragma once

#include "runner/encoder_cache.h"
#include "runner/options.h"
#include "runner/pixels.h"
#include "runner/prompt.h"
#include "runner/reduction.h"
#include "runner/sampler.h"
#include "runner/vocab.h"

#include "ggml-cpp.h"
#include "llama-cpp.h"
#include "pyfastv.h"

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace pyfastv {

class log_scope;

// One model, its vision encoder and one context with one sequence. Uses llama.h, mtmd.h and pyfastv.h only.
// Throws error and interrupted (runner/errors.h); afterwards the engine is usable, after reset().
class engine {
public:
    explicit engine(const engine_options & options);
    ~engine();

    engine(const engine &) = delete;

    // FastV with these settings from now on, or stock llama.cpp; both empty the context
    void set_fastv(const std::string & spec); // the language of pyfastv_parse()
    void clear_fastv();

    // Turbo in the vision encoder from now on, or not; both empty the context
    void set_turbo(const std::string & spec); // the language of pyfastv_turbo_parse()
    void clear_turbo();
    // From now on fewer visual tokens enter the language model, or all; what the context holds stays.
    void set_reducer(const std::string & spec); // the language of parse_reducer() (settings/reducer.h)
    void clear_reducer();

    // Evaluate a prompt, with one marker() for each picture; what the context holds of its beginning is not evaluated
    // again. `reserve` tokens have to fit behind it. progress(done, all) counts prompt tokens.
    using progress_fn = std::function<void(int64_t done, int64_t all)>;

    void prefill(const std::string & text, const std::vector<image> & images, bool add_bos, int64_t reserve, const progress_fn & progress);

    // what the vision encoder sees of a picture, slice by slice; evaluates nothing
    std::vector<slice_pixels> pixels(const image & image) const;
    // What the encoder and the projector make of a picture: each slice, in order. The context stays.
    std::vector<encoded_slice> embed(const image & picture);

    // F32 [n_vocab] of the last evaluated token
    const float * logits();

    // evaluate one token
    void feed(llama_token token);

    void start(const sampling_options & options);

    // the next token and its bytes, none when finished
    std::optional<std::pair<llama_token, std::string>> next();

    const char * finish_reason() const { return finish; } // "stop", "length", or null

    void reset();

    run_report report() const;

    // at a cut; negative ones count from the last
    std::vector<int32_t> kept  (int32_t cut) const;
    std::vector<float>   scores(int32_t cut) const;

    std::vector<pyfastv_grid> grids() const;

    // in the context's pictures, one entry a token that entered: the patch, of its slice, whose position it has
    std::vector<int32_t> places() const;

    const std::string & marker() const { return media_marker; }

    int32_t     n_ctx()   const { return llama_n_ctx(ctx.get()); }
    int32_t     n_embd_inp() const { return llama_model_n_embd_inp(model.get()); }
    int32_t     n_vocab() const { return llama_vocab_n_tokens(vocab); }
    int32_t     n_layer() const { return llama_model_n_layer(model.get()); }
    const char * chat_template() const { return llama_model_chat_template(model.get(), nullptr); }
    std::string bos_token()   const { return pyfastv::bos_token(vocab); }
    std::string eos_token()   const { return pyfastv::eos_token(vocab); }
    std::string description() const { return describe(model.get()); }

private:
    void attach(const pyfastv_params * params);
    void require_memory() const;
    int32_t check_cut(int32_t cut) const;

    // how many pieces at the start of the prompt the context holds; the rest of the context is removed
    size_t reuse(const prompt & prompt);

    void decode_text   (const std::vector<prompt_piece> & pieces, size_t begin, size_t end, bool logits_last);
    void decode_visual (const prompt_piece & piece, const visual_rows & rows);

    // from the encoder or its cache; valid until the next call
    const encoded_slice & encode(const prompt_piece & piece);

    // `piece`: any slice of its picture. tell(n): so many of its tokens are half done; after each slice that was encoded.
    picture_reduction reduce_picture(prompt & prompt, size_t piece, const std::function<void(size_t)> & tell);

    prompt tokenized(const std::string & text, const std::vector<image> & images, bool add_bos) const;

    // adds the time of decoding prompt rows to counts.full_ms, if they ran through every layer at once
    void time_full(const std::function<void()> & decode);

    void end_generation();

    // in the context; positions may be more, or with M-RoPE fewer
    int64_t n_tokens() const;

    // f(), which computes; an exception leaves the context unsound
    template <typename F> auto computing(F && f);
    void check_sound() const;

    void check(int32_t decode_result, const log_scope & log);

    // polls options.interrupt, at most every few milliseconds
    bool stop_requested();

    engine_options options;
    std::string    media_marker;
    interrupt_fn   stop; // stop_requested()

    llama_model_ptr     model;
    const llama_vocab * vocab = nullptr;
    llama_context_ptr   ctx;
    mtmd_context_ptr    vision;

    encoder_cache encoded;
    std::string   turbo; // its settings; empty: off

    std::optional<reducer> reduce_how;
    ggml_backend_ptr       backend; // for matrix products of the reducers; null until one is needed

    std::vector<prompt_piece> evaluated; // what the context holds
    llama_pos                 n_past = 0;

    llama_sampler_ptr          sampler;
    std::optional<llama_token> sampled;  // not evaluated yet
    int32_t                    max_tokens = 0;
    const char *               finish     = nullptr;

    run_report counts;
    int64_t    t_prefill_us   = 0;
    int64_t    t_last_poll_us = 0;
    bool       was_stopped    = false;
    bool       unsound        = false; // an exception passed through a computation: the context has to be cleared
    bool       lost_memory    = false; // what stages take and give back could not be had again
};

} // namespace pyfastv
