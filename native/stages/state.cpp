// staged_memory: saving and loading

#include "stages/sequence_state.h"
#include "stages/staged_memory.h"

#include "llama/call_sites.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace pyfastv {
namespace {

// start of a saved state; stock llama.cpp's states start with a count of streams
constexpr char state_magic[8] = { 'p', 'y', 'f', 'a', 's', 't', 'v', '6' };

// which keys and values are in it; recurrent states are in each
enum class part : uint8_t {
    all,
    windows,       // those of sliding windows
    windows_first, // of the first stage those of sliding windows, of the later stages all
};

llama_state_seq_flags flags_of(part what, int s, llama_state_seq_flags flags) {
    return what == part::windows_first && s > 0 ? flags & ~LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY : flags;
}

std::string list_of(const std::vector<int32_t> & first_layers) {
    std::string res;
    for (size_t s = 1; s < first_layers.size(); ++s) {
        res += (s > 1 ? ", " : "") + std::to_string(first_layers[s]);
    }
    return res;
}

} // namespace

void check_string(uint32_t size) {
    constexpr uint32_t most = 1024; // it is the name of an architecture

    if (size > most) {
        throw std::runtime_error("this state is broken: it claims a name of " + std::to_string(size) + " bytes");
    }
}

void staged_memory::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    // nobody sees a difference: what is taken back would be done again
    const_cast<staged_memory *>(this)->abandon(seq_id);

    const auto it   = sequences.find(seq_id);
    auto       what = part::all;

    if (flags & LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) {
        if (seq_id < 0) {
            throw std::runtime_error("a partial state is of one sequence");
        }
        // A program goes back to such a state with as much as its last row removed. That takes a question back which ends
        // there; another may have chosen other rows before the state is read again.
        const bool ends_with_question = it != sequences.end() && !it->second.turns.empty() &&
                it->second.turns.back().rows.back().pos[0] >= seq_pos_max(seq_id);

        what = ends_with_question ? part::windows_first : part::windows;
    }

    io.write(state_magic, sizeof(state_magic));
    write_all(io, first_layers_, [&](int32_t il) { write(io, il); });
    write(io, width);
    write(io, what);

    for (int s = 0; s < n_stages(); ++s) {
        caches[s]->memory().state_write(io, seq_id, flags_of(what, s, flags));
    }

    const auto write_one = [&](llama_seq_id id) {
        const auto seq = sequences.find(id);
        write_schedule(io, schedules.of(id));
        write_sequence(io, seq == sequences.end() ? sequence {} : seq->second, width);
    };
    if (seq_id >= 0) {
        write_one(seq_id);
        return;
    }

    std::vector<llama_seq_id> ids; // of which there is something to say
    for (llama_seq_id id = 0; id < (llama_seq_id) caches[0]->n_seq_max(); ++id) {
        if (sequences.count(id) || schedules.has(id)) {
            ids.push_back(id);
        }
    }
    write_all(io, ids, [&](llama_seq_id id) {
        write(io, id);
        write_one(id);
    });
}

void staged_memory::state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    forget_weights();
    abandon(seq_id);

    char magic[sizeof(state_magic)];
    io.read(magic, sizeof(magic));
    if (memcmp(magic, state_magic, sizeof(magic)) != 0) {
        throw std::runtime_error("this is not the state of a context with stages of this version");
    }

    const auto first = read_all<int32_t>(io, [&] { return read<int32_t>(io); });
    if (first != first_layers_) {
        throw std::runtime_error("this state has its cuts at layers " + list_of(first) +
                ", the context at layers " + list_of(first_layers_));
    }
    const auto read_width = read<row_width>(io);
    const auto must_be    = [](int64_t has, int64_t of_model) {
        if (has != of_model) {
            throw std::runtime_error("this state has rows of " + std::to_string(has) + " numbers, the model of " + std::to_string(of_model));
        }
    };
    must_be(read_width.n_embd,      width.n_embd);
    must_be(read_width.n_per_layer, width.n_per_layer);

    const auto what    = read<part>(io);
    const bool partial = flags & LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY;
    if (what > part::windows_first || (what != part::all) != partial || (partial && seq_id < 0)) {
        throw std::runtime_error(partial ? "this is not a partial state of a sequence"
                                         : "this is a partial state of a sequence");
    }

    std::map<llama_seq_id, pyfastv_params> brought;

    const auto read_one = [&](llama_seq_id id) {
        brought[id] = read_schedule(io, schedules.own().n_cells);
        admit(brought[id]);
        sequences[id] = read_sequence(io, width, n_stages(), n_ubatches, archive);
    };

    try {
        if (seq_id >= 0) {
            sequences.erase(seq_id);
            schedules.empty(seq_id);
        } else {
            sequences.clear();
            schedules.empty_all();
        }
        for (int s = 0; s < n_stages(); ++s) {
            caches[s]->read(io, seq_id, flags_of(what, s, flags));
        }

        if (seq_id >= 0) {
            read_one(seq_id);
        } else {
            const auto n = read<uint32_t>(io);
            for (uint32_t i = 0; i < n; ++i) {
                const auto id = read<llama_seq_id>(io);
                if (id < 0 || id >= (llama_seq_id) caches[0]->n_seq_max()) {
                    throw std::runtime_error("this state is broken: it has a sequence " + std::to_string(id));
                }
                read_one(id);
            }
        }

        for (const auto & cache : caches) {
            cache->check_cells();
        }
        if (partial) {
            take_back_to_windows(seq_id);
        }
        for (const auto & [id, seq] : sequences) {
            if (seq_id < 0 || id == seq_id) {
                check_sequence(id);
            }
        }
        for (const auto & [id, schedule] : brought) {
            schedules.bring(id, schedule);
        }
        note_empty();
    } catch (...) {
        // nothing half-read
        if (seq_id >= 0) {
            for (const auto & cache : caches) {
                cache->drop(seq_id);
            }
            sequences.erase(seq_id);
        } else {
            clear(true);
        }
        throw;
    }
}

void staged_memory::take_back_to_windows(llama_seq_id seq_id) {
    auto & seq = sequences.at(seq_id);

    for (const auto & cache : caches) {
        cache->memory().seq_rm(seq_id, cache->memory().seq_pos_max(seq_id) + 1, -1);
    }

    std::vector<turn::recall> not_entered;
    for (size_t t = 0; t < seq.tokens.size(); ++t) {
        if (!seq.tokens[t].gone && seq.tokens[t].entered < n_stages()) {
            not_entered.push_back({ (int32_t) t, seq.tokens[t] });
        }
    }
    forget_later(seq_id, INT32_MAX, not_entered);

    seq.settle(later_window_from(seq_id));
}

void staged_memory::check_sequence(llama_seq_id seq_id) const {
    const auto & seq = sequences.at(seq_id);
    if (seq.empty()) {
        return;
    }

    std::vector<stage_cache::cells> cells; // of every stage
    for (const auto & cache : caches) {
        cells.push_back(cache->cells_of(seq_id));
    }

    const auto has = [&](int s, const position & pos) { return cells[s].count(cell_key(pos)) > 0; };

    bool fits = true;
    for (const auto & token : seq.tokens) {
        for (int s = 0; s < token.entered && !token.gone; ++s) {
            fits &= has(s, token.pos);
        }
    }
    for (const auto & row : seq.pending) {
        fits &= has(0, row.pos);
    }
    for (const auto & turn : seq.turns) {
        for (const auto & row : turn.rows) {
            fits &= has(0, row.pos);
        }
    }
    if (!fits) {
        throw std::runtime_error("this state has rows whose keys and values are neither in it nor in the context");
    }
}

} // namespace pyfastv
