// staged_memory: saving and loading

#include "memory/staged_memory.h"

#include "llama-io.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

namespace pyfastv {
namespace {

// start of a saved state; stock llama.cpp's states start with a count of streams
constexpr char state_magic[8] = { 'p', 'y', 'f', 'a', 's', 't', 'v', '2' };

constexpr uint32_t max_count = 1u << 24; // of anything in a state; more is a broken file

template <typename T>
void write(llama_io_write_i & io, const T & value) {
    static_assert(std::is_trivially_copyable_v<T>);
    io.write(&value, sizeof(value));
}

template <typename T>
T read(llama_io_read_i & io) {
    T value;
    io.read(&value, sizeof(value));
    return value;
}

template <typename T, typename F>
void write_all(llama_io_write_i & io, const std::vector<T> & values, F && write_one) {
    write(io, (uint32_t) values.size());
    for (const auto & value : values) {
        write_one(value);
    }
}

template <typename T, typename F>
std::vector<T> read_all(llama_io_read_i & io, F && read_one) {
    const auto n = read<uint32_t>(io);
    if (n > max_count) {
        throw std::runtime_error("this state is broken: it claims " + std::to_string(n) + " entries of a list");
    }
    std::vector<T> res;
    for (uint32_t i = 0; i < n; ++i) {
        res.push_back(read_one());
    }
    return res;
}

// Hidden rows are shared; each is written once, where it is first met.
class writer {
public:
    writer(llama_io_write_i & io, int64_t n_embd) : io(io), n_embd(n_embd) {}

    void put(const sequence & seq) {
        write_all(io, seq.tokens,   [&](const auto & token) { put(token); });
        write_all(io, seq.pictures, [&](const auto & picture) {
            write_all(io, std::vector<char>(picture.id.begin(), picture.id.end()), [&](char c) { write(io, c); });
            write(io, picture.first);
            write_all(io, picture.slices, [&](const auto & slice) { write(io, slice); });
        });
        write_all(io, seq.pending, [&](const auto & row) { put(row); });
        write_all(io, seq.turns,   [&](const auto & turn) {
            write_all(io, turn.rows,     [&](const auto & row) { put(row); });
            write_all(io, turn.recalled, [&](const auto & recall) {
                write(io, recall.token);
                put(recall.before);
            });
        });
        write_all(io, seq.scores, [&](const auto & of_cut) { put(of_cut); });
    }

private:
    void put(const std::vector<float> & values) {
        write_all(io, values, [&](float value) { write(io, value); });
    }

    void put(const hidden_row & row) {
        if (!row) {
            write(io, (int32_t) -1);
            return;
        }
        const auto [it, is_new] = known.emplace(row.get(), (int32_t) known.size());
        write(io, it->second);
        if (is_new) {
            io.write(row.get(), n_embd*sizeof(float));
        }
    }

    void put(const visual_token & token) {
        write(io, token.pos);
        write(io, token.entered);
        write(io, (uint8_t) token.gone);
        write_all(io, token.hidden, [&](const auto & hidden) { put(hidden); });
        put(token.size);
        write(io, token.owner);
    }

    void put(const staged_row & row) {
        write(io, row.pos);
        write(io, row.ubatch);
        write(io, row.token);
        write(io, (uint8_t) row.causal);
        write(io, (uint8_t) row.asks);
        put(row.hidden);
        put(row.scores);
    }

    llama_io_write_i & io;
    const int64_t      n_embd;

    std::map<const float *, int32_t> known;
};

class reader {
public:
    // n_ubatches: of the memory; those of the state get numbers of their own
    reader(llama_io_read_i & io, int64_t n_embd, int32_t n_stages, int32_t & n_ubatches) :
        io(io), n_embd(n_embd), n_stages(n_stages), n_ubatches(n_ubatches) {}

    sequence get() {
        sequence seq;
        seq.tokens   = read_all<visual_token>(io, [&] { return get_token(); });
        seq.pictures = read_all<picture>(io, [&] {
            picture res;
            const auto id = read_all<char>(io, [&] { return read<char>(io); });
            res.id.assign(id.begin(), id.end());
            res.first  = read<int32_t>(io);
            res.slices = read_all<picture::slice>(io, [&] { return read<picture::slice>(io); });
            return res;
        });
        seq.pending = read_all<staged_row>(io, [&] { return get_row(); });
        seq.turns   = read_all<turn>(io, [&] {
            turn res;
            res.rows     = read_all<staged_row>(io, [&] { return get_row(); });
            res.recalled = read_all<turn::recall>(io, [&] {
                const auto token = read<int32_t>(io);
                return turn::recall { token, get_token() };
            });
            return res;
        });
        seq.scores = read_all<std::vector<float>>(io, [&] { return get_floats(); });
        check(seq);
        return seq;
    }

private:
    static void require(bool fact) {
        if (!fact) {
            throw std::runtime_error("this state is broken: its visual tokens do not fit together");
        }
    }

    // nothing that is indexed by what was read may lead outside
    void check(const sequence & seq) const {
        const auto n = (int32_t) seq.tokens.size();

        const auto check_row   = [&](const staged_row & row) {
            require(row.token >= -1 && row.token < n && row.hidden);
            require(!row.visual() || (!seq.tokens[row.token].gone && seq.tokens[row.token].pos == row.pos));
        };
        const auto check_token = [&](const visual_token & token) {
            // of every stage but the last, which has no cut behind it
            require(token.entered >= 1 && token.entered <= n_stages);
            require(token.gone || token.hidden.size() == (size_t) std::min(token.entered, n_stages - 1));
            require(token.size.size() == (size_t) token.entered - 1 && token.owner >= -1 && token.owner < n);
            require(std::all_of(token.size.begin(), token.size.end(), [](float size) { return size >= 1.0f; }));
            require(std::all_of(token.hidden.begin(), token.hidden.end(), [](const auto & hidden) { return hidden != nullptr; }));
        };

        for (const auto & token : seq.tokens) {
            check_token(token);
        }
        int32_t first = 0;
        for (const auto & picture : seq.pictures) {
            require(picture.first == first && !picture.slices.empty());
            for (const auto & slice : picture.slices) {
                require(slice.n > 0 && slice.n <= n - first && slice.nx >= 0 && slice.ny >= 0);
                first += slice.n;
            }
        }
        require(first == n);
        for (const auto & row : seq.pending) {
            check_row(row);
            require(!row.visual() || seq.tokens[row.token].entered == 1);
        }
        for (const auto & token : seq.tokens) {
            require(token.gone || token.owner < 0 || seq.tokens[token.owner].entered > token.entered);
        }
        for (const auto & turn : seq.turns) {
            require(!turn.rows.empty());
            for (const auto & row : turn.rows) {
                check_row(row);
            }
            for (const auto & recall : turn.recalled) {
                require(recall.token >= 0 && recall.token < n);
                check_token(recall.before);
                require(recall.before.gone || recall.before.pos == seq.tokens[recall.token].pos);
                require(recall.before.owner < 0 || seq.tokens[recall.before.owner].entered > recall.before.entered);
            }
        }
        require(seq.scores.size() < (size_t) n_stages);
    }

    std::vector<float> get_floats() {
        return read_all<float>(io, [&] { return read<float>(io); });
    }

    hidden_row get_hidden() {
        const auto index = read<int32_t>(io);
        if (index == -1) {
            return nullptr;
        }
        require(index >= 0 && index <= (int32_t) known.size());
        if (index == (int32_t) known.size()) {
            const auto block = std::make_shared<std::vector<float>>(n_embd);
            io.read(block->data(), n_embd*sizeof(float));
            known.emplace_back(block, block->data());
        }
        return known[index];
    }

    visual_token get_token() {
        visual_token res;
        res.pos     = read<position>(io);
        res.entered = read<int32_t>(io);
        res.gone    = read<uint8_t>(io) != 0;
        res.hidden  = read_all<hidden_row>(io, [&] { return get_hidden(); });
        res.size    = get_floats();
        res.owner   = read<int32_t>(io);
        return res;
    }

    staged_row get_row() {
        staged_row res;
        res.pos    = read<position>(io);
        res.ubatch = ubatches.emplace(read<int32_t>(io), n_ubatches).first->second;
        n_ubatches = std::max(n_ubatches, res.ubatch + 1);
        res.output = -1;
        res.token  = read<int32_t>(io);
        res.causal = read<uint8_t>(io) != 0;
        res.asks   = read<uint8_t>(io) != 0;
        res.hidden = get_hidden();
        res.scores = get_floats();
        return res;
    }

    llama_io_read_i & io;
    const int64_t     n_embd;
    const int32_t     n_stages;
    int32_t         & n_ubatches;

    std::vector<hidden_row>    known;
    std::map<int32_t, int32_t> ubatches;
};

void refuse_partial(llama_state_seq_flags flags) {
    if (flags & LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) {
        throw std::runtime_error("a context with stages saves and loads whole states only");
    }
}

} // namespace

void staged_memory::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    refuse_partial(flags);

    io.write(state_magic, sizeof(state_magic));
    write_all(io, first_layers_, [&](int32_t il) { write(io, il); });
    write(io, n_embd);

    for (const auto & cache : caches) {
        cache->memory().state_write(io, seq_id, flags);
    }

    if (seq_id >= 0) {
        const auto it = sequences.find(seq_id);
        writer(io, n_embd).put(it == sequences.end() ? sequence {} : it->second);
        return;
    }

    write(io, (uint32_t) sequences.size());
    for (const auto & [id, seq] : sequences) {
        write(io, id);
        writer(io, n_embd).put(seq);
    }
}

void staged_memory::state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    refuse_partial(flags);

    forget_weights();

    char magic[sizeof(state_magic)];
    io.read(magic, sizeof(magic));
    if (memcmp(magic, state_magic, sizeof(magic)) != 0) {
        throw std::runtime_error("this is not the state of a context with stages of this version");
    }

    const auto first = read_all<int32_t>(io, [&] { return read<int32_t>(io); });
    if (first != first_layers_) {
        const auto list = [](const std::vector<int32_t> & layers) {
            std::string res;
            for (size_t s = 1; s < layers.size(); ++s) {
                res += (s > 1 ? ", " : "") + std::to_string(layers[s]);
            }
            return res;
        };
        throw std::runtime_error("this state has its cuts at layers " + list(first) + ", the context at layers " + list(first_layers_));
    }
    if (const auto width = read<int64_t>(io); width != n_embd) {
        throw std::runtime_error("this state has rows of " + std::to_string(width) + " numbers, the model of " + std::to_string(n_embd));
    }

    try {
        if (seq_id >= 0) {
            sequences.erase(seq_id);
        } else {
            sequences.clear();
        }
        for (const auto & cache : caches) {
            cache->memory().state_read(io, seq_id, flags);
        }

        if (seq_id >= 0) {
            sequences[seq_id] = reader(io, n_embd, n_stages(), n_ubatches).get();
        } else {
            const auto n = read<uint32_t>(io);
            for (uint32_t i = 0; i < n; ++i) {
                const auto id = read<llama_seq_id>(io);
                if (id < 0 || id >= (llama_seq_id) LLAMA_MAX_SEQ) {
                    throw std::runtime_error("this state is broken: it has a sequence " + std::to_string(id));
                }
                sequences[id] = reader(io, n_embd, n_stages(), n_ubatches).get();
            }
        }
    } catch (...) {
        // nothing half-read
        if (seq_id >= 0) {
            for (const auto & cache : caches) {
                cache->memory().seq_rm(seq_id, -1, -1);
            }
            sequences.erase(seq_id);
        } else {
            clear(true);
        }
        throw;
    }
}

} // namespace pyfastv
