#pragma once

#include "pyfastv.h"

#include "llama/call_sites.h"
#include "llama/context.h"
#include "stages/staged_memory.h"
#include "stop/eval_stop.h"

#include "ggml.h"

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

struct llama_context;
class  llama_batch_allocr;
class  llm_graph_result;

namespace pyfastv {

struct flight;       // stages/flight.h
struct flow;         // stages/flow.h
class  stage_output; // llama/stage_output.h

// The decode of a context that has stages.
//
// Batches without anything to wait for run as one full graph over the memories of all stages: llama.cpp's own decode,
// at its speed. From the first visual row of a sequence on, decode() runs stage 0 only and leaves the rows in the
// sequence's `pending`. flush() chooses among the visual rows and runs the later layers on those chosen and on the text
// rows; it goes from cut to cut. A question behind pictures that were chosen from waits as well: it may recall.
class staged_decode {
public:
    // Replaces the memory of the context. Throws std::invalid_argument for params out of range, unsupported if the
    // context cannot have stages, std::runtime_error when memory runs out; the context then has a plain memory again.
    static void attach(llama_context & ctx, const pyfastv_params & params);

    // call site at the end of llama_context's constructor: attach() by the environment variable LLAMA_FASTV, for programs
    // that know nothing of pyfastv; not to a context that drafts for another. What is wrong with it is one line on stderr,
    // and nothing is pruned.
    static void attach_from_env(llama_context & ctx, const llama_context_params & made_with);

    // Gives the context a plain memory again.
    static void detach(llama_context & ctx);

    // pyfastv_allow_position_gaps(), of any context
    static void allow_position_gaps(llama_context & ctx);

    // The schedule of a sequence, null: as attached. Throws std::invalid_argument if the sequence holds visual tokens, for other
    // layers or cells than those attached and for params out of range, unsupported for rules that the context cannot have,
    // std::runtime_error when memory runs out; the sequence then has the one that it had.
    void set_schedule(llama_seq_id seq_id, const pyfastv_params * schedule);

    // seq_id -1: that which was attached
    const pyfastv_params & schedule(llama_seq_id seq_id) const;

    // has it the layers and the cells of what was attached?
    bool fits(const pyfastv_params & schedule) const;

    // call site at the end of llama_context::sched_reserve: build every graph once, for its largest ubatch. That finds
    // models that cannot be run in stages, and allocates, so that flush() does not have to.
    void reserve();

    // call sites in llama_context::decode, after the batch was checked and before slots are looked for
    bool takes(const llama_batch_allocr & balloc);
    // llama_decode()'s return values. Of a ubatch that fails, and if it throws, nothing stays.
    int  decode(llama_batch_allocr & balloc);

    // call site in llama_context::output_reorder, which every reading of outputs passes. What fails is in the log.
    void flush_if_read() noexcept;

    // Every sequence that waits. Unless it returns PYFASTV_OK, and if it throws, the rows still wait, and it can be called
    // again.
    pyfastv_status flush();

    // A piece of the same, of one sequence: at most n_ubatch rows through the layers of a stage. more: it is to be called again.
    pyfastv_status flush_piece(llama_seq_id seq_id, bool & more);

    void begin_media(pyfastv_media media, const char * id, int32_t nx, int32_t ny);
    void continue_media();

    void set_answering(bool value) { answering = value; }

    pyfastv_report report() const;
    void           reset_report();

    std::vector<int32_t> kept  (llama_seq_id seq_id, int32_t cut) const;
    std::vector<float>   scores(llama_seq_id seq_id, int32_t cut) const;

    std::vector<pyfastv_grid> grids(llama_seq_id seq_id) const;

private:
    static void make_plain(context_access ctx, cache_layout layout);

    staged_decode(context_access ctx, staged_memory & memory);

    // Throws std::invalid_argument or unsupported if a sequence cannot have this schedule, cells apart.
    void check(const pyfastv_params & schedule) const;

    // stage s as it runs when rows wait, without scores
    stage stage_to_run(int s) const;

    // The graphs that a schedule needs are reserved. Throws as reserve() does; then nothing has changed.
    void ensure_graphs(const pyfastv_params & schedule);
    void add_to_largest(const pyfastv_params & schedule);

    // does the first choice by this rule read the attention of every row of such a batch?
    static bool every_row_is_read(const pyfastv_cut & rule, bool visual);

    // of a sequence, at a cut
    const pyfastv_cut & rule(llama_seq_id seq_id, int32_t cut) const { return memory.schedules.of(seq_id).cuts[cut]; }

    bool can_recall(llama_seq_id seq_id, const sequence & seq) const;

    bool has_room_later(const llama_batch_allocr & balloc, bool visual) const;

    // how many tokens of a sequence a question may bring back to stage s
    size_t most_recalled(const sequence & seq, float recall, int s) const;

    // one ubatch through the layers of one stage; its slots were found by staged_memory::init_stage()
    ggml_status run(stage layers, const llama_ubatch & ubatch, llama_memory_context_i & mctx, llm_graph_result *& res);

    // What is put back of a sequence when rows at positions [p0, inf), which come now, fail
    struct before_rows {
        llama_pos           p0;
        stage_cache::states states;
    };
    using all_before = std::map<llama_seq_id, before_rows>;

    // before a ubatch runs through recurrent layers of stage 0; in `before` is what was noted for those in front of it in the batch
    void note_states(const llama_ubatch & ubatch, all_before & before) const;

    // Everything from the positions of the ubatch on, in its sequences; all of one whose states in front of them are not known.
    void forget(const llama_ubatch & ubatch, const all_before & before) noexcept;

    // what stage 0 left in its graph, to the sequences of the ubatch
    void read_rows(const stage_output & output, const llama_ubatch & ubatch, const std::vector<int8_t> & outputs,
            bool visual, const std::set<llama_seq_id> & asking);

    pyfastv_status flush(const std::vector<llama_seq_id> & seq_ids);
    pyfastv_status flush_read(); // the sequences whose outputs were asked for

    // through the later layers (stages/flush.cpp)

    flight         take_off(const std::vector<llama_seq_id> & seq_ids);
    pyfastv_status fly(flight & flight, bool one_piece); // all the way, or a piece of it; if that fails, they forget all of it
    void           land(flight & flight);                // it has come to the end

    size_t         next_rows(const flight & flight) const; // how many rows what comes next counts for
    pyfastv_status run_next(flight & flight, bool in_place); // in_place: logits are written where they are read
    void           choose(flight & flight);
    pyfastv_status run_ubatch(flight & flight, bool in_place);

    // ubatches of the rows of all sequences for a later stage, counted in these rows
    std::vector<size_t> ends_of_ubatches(const std::vector<flow> & flows) const;

    context_access   ctx;
    eval_stop        eval; // of ctx
    staged_memory  & memory; // owned by the context

    std::vector<stage> largest; // [stage] with what is scored for the schedules that there have been

    // the media chunk that embedding rows belong to
    pyfastv_media media = PYFASTV_MEDIA_IMAGE;
    std::string   media_id;
    int32_t       media_nx = 0;
    int32_t       media_ny = 0;
    bool          media_begins    = true;  // with the next embedding row
    bool          media_continues = false; // the picture in front, if that is media_id and waits

    bool answering = false; // text is no question

    int32_t n_ubatches = 0; // run through stage 0
    int32_t n_outputs  = 0; // outputs of the last batch that wait

    pyfastv_report counts = {};
};

} // namespace pyfastv
