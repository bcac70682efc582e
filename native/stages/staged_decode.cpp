// staged_decode: stage 0

#include "stages/staged_decode.h"

#include "choose/choose.h"
#include "stages/caught.h"
#include "stages/flight.h"
#include "stages/scopes.h"
#include "llama/stage_output.h"
#include "llama/supported.h"
#include "settings/rules.h"
#include "settings/schedule.h"

#include "llama/interfaces.h"
#include "llama/ubatch.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <set>
#include <utility>

namespace pyfastv {

bool staged_decode::can_recall(llama_seq_id seq_id, const sequence & seq) const {
    const auto & schedule = memory.schedules.of(seq_id);
    const auto & cache    = memory.cache(0);

    // What comes back would not find what it would have found in its turn. It comes if somebody has asked for it, by another
    // share than the default.
    if (cache.is_recurrent() && schedule.recall == default_params().recall) {
        return false;
    }

    return schedule.recall > 0.0f && cache.can_recall() && memory.remembers(seq_id) && seq.has_dropped(memory.n_stages()) &&
            std::any_of(schedule.cuts, schedule.cuts + schedule.n_cuts, reads_attention);
}

namespace {

// the rows of a sequence in a batch
struct row_counts {
    int32_t all  = 0;
    int32_t read = 0; // logits are asked for

    // Of a generated token, and of a draft of several that is verified, every row is read.
    bool asks() const { return all > 1 && read < all; }
};

std::map<llama_seq_id, row_counts> rows_by_sequence(const llama_batch & batch) {
    std::map<llama_seq_id, row_counts> n_rows;
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        for (int32_t j = 0; j < batch.n_seq_id[i]; ++j) {
            auto & counts = n_rows[batch.seq_id[i][j]];
            counts.all++;
            counts.read += batch.logits[i] != 0;
        }
    }
    return n_rows;
}

} // namespace

bool staged_decode::takes(const llama_batch_allocr & balloc) {
    const auto & batch = balloc.get_batch();

    // outputs that nobody has read
    for (auto & [id, seq] : memory.sequences) {
        for (auto & row : seq.pending) {
            row.output = -1;
        }
    }
    n_outputs = 0;

    const bool visual = batch.embd && !batch.token && media == PYFASTV_MEDIA_IMAGE;
    if (memory.sequences.empty()) {
        return visual;
    }

    const auto n_rows = rows_by_sequence(batch);

    for (const auto & item : n_rows) {
        memory.abandon(item.first);
    }
    return visual || std::any_of(n_rows.begin(), n_rows.end(), [&](const auto & item) {
        const auto seq = memory.sequences.find(item.first);

        return seq != memory.sequences.end() && (!seq->second.pending.empty() || (!answering && item.second.asks() && can_recall(item.first, seq->second)));
    });
}

bool staged_decode::has_room_later(const llama_batch_allocr & balloc, bool visual) const {
    const auto n_rows = rows_by_sequence(balloc.get_batch());

    for (int s = 1; s < memory.n_stages(); ++s) {
        const auto & cache = memory.cache(s);

        const auto at_most = [&](llama_seq_id seq_id, size_t n) {
            const auto & cut = rule(seq_id, s - 1);
            return pick_rule_of(cut).keeps_more ? n : count_kept(n, cut.drop);
        };

        // every sequence fills cells of its own
        size_t n = cache.n_cells_used();

        for (const auto & [seq_id, rows] : n_rows) {
            n += visual ? at_most(seq_id, rows.all) : rows.all;
        }
        for (const auto & [seq_id, seq] : memory.sequences) {
            if (memory.in_air && memory.in_air->has(seq_id)) {
                n += memory.in_air->stage <= s ? memory.in_air->n_rows_left(s) : 0;
                continue;
            }
            std::vector<size_t> waiting(seq.pictures.size(), 0); // visual tokens
            for (const auto & row : seq.pending) {
                if (row.visual()) {
                    waiting[seq.picture_of(row.token)]++;
                } else {
                    n++;
                }
            }
            for (size_t p = 0; p < waiting.size(); ++p) {
                n += std::min(at_most(seq_id, seq.pictures[p].n_tokens()), waiting[p]);
            }
            if (n_rows.count(seq_id) && can_recall(seq_id, seq)) {
                n += most_recalled(seq, memory.schedules.of(seq_id).recall, s);
            }
        }

        if (n > cache.n_cells()) {
            LLAMA_LOG_WARN("%s: no room in the KV cache of the layers from %d on: %zu cells are needed, there are %u\n",
                    __func__, memory.first_layers()[s], n, cache.n_cells());
            return false;
        }
    }
    return true;
}

size_t staged_decode::most_recalled(const sequence & seq, float recall, int s) const {
    size_t n = 0;
    for (const auto & picture : seq.pictures) {
        const auto first = seq.tokens.begin() + picture.first;
        const auto last  = first + picture.n_tokens();

        const auto is_out = [s](const visual_token & token) { return !token.gone && token.entered <= s; };
        if (std::none_of(first, last, [](const visual_token & token) { return token.entered > 1; })) {
            continue; // it waits
        }
        // at every cut up to there
        n += std::min((size_t) std::count_if(first, last, is_out), s*recall_budget(picture.n_tokens(), recall));
    }
    return n;
}

int staged_decode::decode(llama_batch_allocr & balloc) {
    if (const char * reason = ctx.unsupported_output()) {
        LLAMA_LOG_ERROR("%s: %s\n", __func__, reason);
        return -1;
    }

    const bool visual = balloc.get_batch().embd && media == PYFASTV_MEDIA_IMAGE;

    balloc.split_reset();

    std::vector<llama_ubatch>         ubatches;
    std::vector<std::vector<int8_t>>  outputs; // of every ubatch

    const auto split = [&] { return memory.cache(0).split(balloc, ctx.n_ubatch(), false); };

    for (auto ubatch = split(); ubatch.n_tokens > 0; ubatch = split()) {
        outputs.emplace_back(ubatch.output, ubatch.output + ubatch.n_tokens);
        // stage 0 has no outputs
        std::fill_n(ubatch.output, ubatch.n_tokens, 0);
        ubatches.push_back(std::move(ubatch));
    }

    // reading must not fail later
    auto mctx = memory.init_stage(0, ubatches);
    if (!mctx || !has_room_later(balloc, visual)) {
        LLAMA_LOG_WARN("%s: no room in the KV cache for %u tokens\n", __func__, balloc.get_n_tokens());
        return 1;
    }

    const uint32_t n_outputs_all = balloc.get_n_outputs();

    if (!ctx.reserve_outputs(n_outputs_all)) {
        LLAMA_LOG_ERROR("%s: could not reserve space for batch with %u outputs\n", __func__, n_outputs_all);
        return -2;
    }

    std::set<llama_seq_id> asking;
    for (const auto & [seq_id, n_rows] : rows_by_sequence(balloc.get_batch())) {
        if (!balloc.get_batch().embd && !answering && n_rows.asks()) {
            asking.insert(seq_id);
        }
    }

    const timer time(counts.t_stage0_ms);

    all_before before;

    for (size_t u = 0; u < ubatches.size(); ++u) {
        const auto & ubatch = ubatches[u];

        auto layers = stage_to_run(0);
        for (uint32_t s = 0; s < ubatch.n_seqs_unq; ++s) {
            const auto & cut = rule(ubatch.seq_id_unq[s], 0);

            ask_for_scores(layers, cut, ubatch.n_seqs_unq > 1 || every_row_is_read(cut, visual) ? stage::all : 1);
        }

        llm_graph_result * res = nullptr;

        note_states(ubatch, before);
        on_exit take_back([&] { forget(ubatch, before); });

        const auto status = run(layers, ubatch, *mctx, res);
        if (status != GGML_STATUS_SUCCESS) {
            return to_decode_result(status);
        }
        read_rows(stage_output(*res, ubatch.n_tokens, memory.archive), ubatch, outputs[u], visual, asking);

        take_back.dismiss();
        mctx->next();
    }

    media_begins = !visual;
    counts.n_visual += visual ? balloc.get_n_tokens() : 0;
    n_outputs = n_outputs_all;

    return 0;
}

bool staged_decode::every_row_is_read(const pyfastv_cut & rule, bool visual) {
    // a picture's own rows vote where all do
    return visual ? score_rule_of(rule).who == voters::all_rows : every_row_votes(rule);
}

// of a sequence in a ubatch; INT32_MAX: it has none
static llama_pos first_position(const llama_ubatch & ubatch, llama_seq_id seq_id) {
    llama_pos res = INT32_MAX;
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        if (std::count(ubatch.seq_id[i], ubatch.seq_id[i] + ubatch.n_seq_id[i], seq_id)) {
            res = std::min(res, ubatch.pos[i]);
        }
    }
    return res;
}

void staged_decode::note_states(const llama_ubatch & ubatch, all_before & before) const {
    const auto & cache = memory.cache(0);
    if (!cache.is_recurrent()) {
        return;
    }
    ctx.synchronize();
    for (llama_seq_id id = 0; id < (llama_seq_id) ctx.n_seq_max(); ++id) {
        const llama_pos p0 = first_position(ubatch, id);

        // where several sequences come at once, llama.cpp moves the states of others, too
        if (p0 == INT32_MAX && ubatch.n_seqs == 1) {
            before.erase(id);
            continue;
        }
        // Rows of a picture may have the time of rows in front: what was noted in front of those stays.
        if (p0 > memory.seq_pos_max(id)) {
            before[id] = { p0, cache.states_of(id) };
        }
    }
}

void staged_decode::forget(const llama_ubatch & ubatch, const all_before & before) noexcept {
    auto & cache = memory.cache(0);
    try {
        for (const auto & [seq_id, was] : before) {
            cache.put_back(seq_id, was.states);
        }
    } catch (...) {
        status_of_exception(__func__);
    }
    for (uint32_t s = 0; s < ubatch.n_seqs_unq; ++s) {
        const auto seq_id = ubatch.seq_id_unq[s];

        llama_pos p0 = first_position(ubatch, seq_id);
        if (cache.is_recurrent()) {
            const auto was = before.find(seq_id);
            p0 = was == before.end() ? 0 : std::min(p0, was->second.p0);
        }
        LLAMA_LOG_WARN("%s: removing memory module entries for seq_id = %d, pos = [%d, +inf)\n", __func__, seq_id, p0);
        try {
            memory.seq_rm(seq_id, p0, -1);
        } catch (...) {
            status_of_exception(__func__);
        }
    }
}

void staged_decode::read_rows(const stage_output & output, const llama_ubatch & ubatch, const std::vector<int8_t> & outputs,
        bool visual, const std::set<llama_seq_id> & asking) {
    const int32_t number = memory.n_ubatches++;

    for (uint32_t s = 0; s < ubatch.n_seqs_unq; ++s) {
        const auto seq_id = ubatch.seq_id_unq[s];

        std::vector<uint32_t> members;
        std::vector<position> places;
        for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
            if (std::count(ubatch.seq_id[i], ubatch.seq_id[i] + ubatch.n_seq_id[i], seq_id)) {
                position pos = {};
                for (uint32_t j = 0; j < std::min<uint32_t>(ctx.n_pos_per_embd(), pos.size()); ++j) {
                    pos[j] = ubatch.pos[j*ubatch.n_tokens + i];
                }
                if (ubatch.token) {
                    pos[3] = 0; // llm_graph_input_pos does the same
                }
                members.push_back(i);
                places.push_back(pos);
            }
        }

        auto &       seq = memory.sequences[seq_id];
        const auto & cut = rule(seq_id, 0);

        int32_t token = -1;
        if (visual) {
            using extent = sequence::extent;

            const bool more  = !media_begins && !seq.pending.empty() && seq.pending.back().visual();
            const bool slice = media_continues && seq.last_picture_waits() && seq.pictures.back().id == media_id;

            token = seq.add_tokens(places, more ? extent::more : slice ? extent::slice : extent::picture, media_id, media_nx, media_ny);
        }

        const auto cells   = output.has_scores() && !seq.tokens.empty() ? memory.cache(0).cells_of(seq_id) : stage_cache::cells {};
        const auto cell_of = cells_of_tokens(seq.tokens, cells);

        for (size_t m = 0; m < members.size(); ++m) {
            const uint32_t i = members[m];

            staged_row row;
            row.pos    = places[m];
            row.ubatch = number;
            row.output = outputs[i] ? batch_index(ubatch, i) : -1;
            row.token  = visual ? token + (int32_t) m : -1;
            row.causal = ctx.causal();
            row.audio  = ubatch.embd && !visual;
            row.asks   = asking.count(seq_id) > 0;
            row.hidden = output.hidden(i);
            row.per_layer = output.per_layer(i);
            if (every_row_is_read(cut, visual) || m + 1 == members.size()) {
                row.scores = output.scores(i, cell_of, cut);
            }

            if (visual) {
                seq.tokens[row.token].hidden    = { row.hidden };
                seq.tokens[row.token].per_layer = row.per_layer;
            }
            seq.pending.push_back(std::move(row));
        }
    }

    if (visual) {
        media_begins = false;
    }
}

ggml_status staged_decode::run(stage layers, const llama_ubatch & ubatch, llama_memory_context_i & mctx, llm_graph_result *& res) {
    eval.begin();
    const auto status = ctx.run(layers, ubatch, mctx, eval.callback(), &eval, res);

    return status == GGML_STATUS_SUCCESS && eval.said() ? GGML_STATUS_ABORTED : status;
}

void staged_decode::begin_media(pyfastv_media media, const char * id, int32_t nx, int32_t ny) {
    media_continues = false; // what memory runs out for is no slice of the last picture

    this->media  = media == PYFASTV_MEDIA_SLICE ? PYFASTV_MEDIA_IMAGE : media;
    media_nx     = std::max(nx, 0);
    media_ny     = std::max(ny, 0);
    media_begins = true;
    media_id     = id ? id : "";

    media_continues = media == PYFASTV_MEDIA_SLICE;
}

void staged_decode::continue_media() {
    media        = PYFASTV_MEDIA_IMAGE;
    media_begins = false;
}

//
// what there is to know
//

pyfastv_report staged_decode::report() const {
    auto res = counts;

    res.n_pending           = (int32_t) memory.n_pending();
    res.n_stages            = memory.n_stages();
    res.n_visual_entered[0] = res.n_visual;

    res.archive_bytes    = memory.archive->bytes();
    res.similarity_bytes = memory.similarities->bytes();

    const auto & stage0 = memory.cache(0);

    for (int s = 0; s < memory.n_stages(); ++s) {
        const auto & cache = memory.cache(s);
        const auto   bytes = cache.bytes();

        res.first_layer[s]   = memory.first_layers()[s];
        res.kv_bytes_used[s] = bytes.used;
        res.kv_bytes[s]      = bytes.allocated;

        // every layer would have the cells of stage 0
        res.kv_bytes_stock      += bytes.allocated + bytes.cell*(stage0.n_cells() - cache.n_cells());
        res.kv_bytes_used_stock += bytes.used      + bytes.cell*stage0.n_cells_used() - bytes.cell*cache.n_cells_used();
    }

    return res;
}

void staged_decode::reset_report() {
    counts = {};
}

std::vector<int32_t> staged_decode::kept(llama_seq_id seq_id, int32_t cut) const {
    std::vector<int32_t> res;

    if (const auto it = memory.sequences.find(seq_id); it != memory.sequences.end()) {
        const auto & tokens = it->second.tokens;
        for (size_t t = 0; t < tokens.size(); ++t) {
            if (!tokens[t].gone && tokens[t].entered >= cut + 2) {
                res.push_back((int32_t) t);
            }
        }
    }
    return res;
}

std::vector<float> staged_decode::scores(llama_seq_id seq_id, int32_t cut) const {
    const auto it = memory.sequences.find(seq_id);

    return it != memory.sequences.end() && cut >= 0 && cut < (int32_t) it->second.scores.size() ? it->second.scores[cut] : std::vector<float> {};
}

std::vector<pyfastv_grid> staged_decode::grids(llama_seq_id seq_id) const {
    std::vector<pyfastv_grid> res;

    if (const auto it = memory.sequences.find(seq_id); it != memory.sequences.end()) {
        const auto & pictures = it->second.pictures;
        for (size_t i = 0; i < pictures.size(); ++i) {
            for (const auto & grid : grids_of(pictures[i])) {
                res.push_back({ (int32_t) i, grid.nx, grid.ny });
            }
        }
    }
    return res;
}

} // namespace pyfastv
