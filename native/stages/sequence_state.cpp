#include "stages/sequence_state.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>

namespace pyfastv {
namespace {

// Hidden rows are shared; each is written once, where it is first met.
class writer {
public:
    writer(llama_io_write_i & io, const row_width & width) : io(io), width(width) {}

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
    template <typename A>
    void put(const std::vector<float, A> & values) {
        write_all(io, values, [&](float value) { write(io, value); });
    }

    void put(const hidden_row & row) { put(row, width.n_embd, known); }

    void put_per_layer(const hidden_row & row) {
        if (width.n_per_layer > 0) {
            put(row, width.n_per_layer, known_per_layer);
        }
    }

    using numbers = std::map<const float *, int32_t>;

    void put(const hidden_row & row, int64_t n, numbers & known) {
        if (!row) {
            write(io, (int32_t) -1);
            return;
        }
        const auto [it, is_new] = known.emplace(row.get(), (int32_t) known.size());
        write(io, it->second);
        if (is_new) {
            io.write(row.get(), n*sizeof(float));
        }
    }

    void put(const visual_token & token) {
        write(io, token.pos);
        write(io, token.entered);
        write(io, (uint8_t) token.gone);
        write_all(io, token.hidden, [&](const auto & hidden) { put(hidden); });
        put(token.size);
        write(io, token.owner);
        put_per_layer(token.per_layer);
    }

    void put(const staged_row & row) {
        write(io, row.pos);
        write(io, row.ubatch);
        write(io, row.token);
        write(io, (uint8_t) row.causal);
        write(io, (uint8_t) row.audio);
        write(io, (uint8_t) row.asks);
        put(row.hidden);
        put_per_layer(row.per_layer);
        put(row.scores);
    }

    llama_io_write_i & io;
    const row_width    width;

    numbers known;
    numbers known_per_layer;
};

class reader {
public:
    reader(llama_io_read_i & io, const row_width & width, int32_t n_stages, int32_t & n_ubatches, const ledger_ptr & archive) :
        io(io), width(width), n_stages(n_stages), n_ubatches(n_ubatches), archive(archive) {}

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

    // Nothing that is indexed by what was read may lead outside, now or when a turn is taken back.
    void check(const sequence & seq) const {
        check_pictures(seq);

        for (const auto & token : seq.tokens) {
            check(token, seq);
        }
        for (const auto & row : seq.pending) {
            check(row, seq);
            require(!row.visual() || seq.tokens[row.token].entered == 1);
        }
        for (const auto & turn : seq.turns) {
            require(!turn.rows.empty());
            for (const auto & row : turn.rows) {
                check(row, seq);
            }
            for (const auto & recall : turn.recalled) {
                require(recall.token >= 0 && recall.token < n_tokens(seq));
                check(recall.before, seq);
                require(recall.before.gone || recall.before.pos == seq.tokens[recall.token].pos);
            }
        }
        require(seq.scores.size() < (size_t) n_stages);
        for (const auto & of_cut : seq.scores) {
            require(of_cut.size() <= seq.tokens.size());
        }
    }

    static int32_t n_tokens(const sequence & seq) { return (int32_t) seq.tokens.size(); }

    // every token belongs to one
    static void check_pictures(const sequence & seq) {
        int32_t first = 0;
        for (const auto & picture : seq.pictures) {
            require(picture.first == first && !picture.slices.empty());
            for (const auto & slice : picture.slices) {
                require(slice.n > 0 && slice.n <= n_tokens(seq) - first && slice.nx >= 0 && slice.ny >= 0);
                first += slice.n;
            }
        }
        require(first == n_tokens(seq));
    }

    void check(const visual_token & token, const sequence & seq) const {
        require(token.gone || std::all_of(token.pos.begin(), token.pos.end(), is_possible));
        require(token.entered >= 1 && token.entered <= n_stages);
        // of every stage but the last, which has no cut behind it
        require(token.hidden.size() == (token.gone ? 0 : (size_t) std::min(token.entered, n_stages - 1)));
        require(token.size.size() == (size_t) token.entered - 1);
        require(token.gone ? !token.per_layer : has_per_layer(token.per_layer));
        for (const auto & hidden : token.hidden) {
            require(hidden != nullptr);
        }
        for (const float size : token.size) {
            require(std::isfinite(size) && size >= 1.0f);
        }
        require(token.owner >= -1 && token.owner < n_tokens(seq));
        require(token.gone || token.owner < 0 || seq.tokens[token.owner].entered > token.entered);
    }

    void check(const staged_row & row, const sequence & seq) const {
        require(std::all_of(row.pos.begin(), row.pos.end(), is_possible));
        require(row.token >= -1 && row.token < n_tokens(seq) && row.hidden && has_per_layer(row.per_layer));
        require(!row.visual() || (!seq.tokens[row.token].gone && seq.tokens[row.token].pos == row.pos));
        require(row.scores.size() <= seq.tokens.size());
    }

    bool has_per_layer(const hidden_row & row) const { return (row != nullptr) == (width.n_per_layer > 0); }

    std::vector<float> get_floats() {
        return read_all<float>(io, [&] { return read<float>(io); });
    }

    hidden_row get_hidden() { return get_row_of(width.n_embd, known); }

    hidden_row get_per_layer() { return width.n_per_layer > 0 ? get_row_of(width.n_per_layer, known_per_layer) : nullptr; }

    // known: rows that were met, all of n numbers
    hidden_row get_row_of(int64_t n, std::vector<hidden_row> & known) {
        const auto index = read<int32_t>(io);
        if (index == -1) {
            return nullptr;
        }
        require(index >= 0 && index <= (int32_t) known.size());
        if (index == (int32_t) known.size()) {
            known.push_back(new_hidden_row(n, archive, [&](float * to) { io.read(to, n*sizeof(float)); }));
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
        res.per_layer = get_per_layer();
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
        res.audio  = read<uint8_t>(io) != 0;
        res.asks   = read<uint8_t>(io) != 0;
        res.hidden = get_hidden();
        res.per_layer = get_per_layer();
        res.scores = read_all<float>(io, [&] { return read<float>(io); }, counting_allocator<float>(archive));
        res.scores.shrink_to_fit();
        return res;
    }

    llama_io_read_i & io;
    const row_width   width;
    const int32_t     n_stages;
    int32_t         & n_ubatches; // of the memory
    const ledger_ptr  archive;

    std::vector<hidden_row>    known;
    std::vector<hidden_row>    known_per_layer;
    std::map<int32_t, int32_t> ubatches;
};

} // namespace

void write_schedule(llama_io_write_i & io, const pyfastv_params & schedule) {
    write(io, schedule.recall);
    write(io, schedule.n_cuts);
    for (int32_t c = 0; c < schedule.n_cuts; ++c) {
        const auto & cut = schedule.cuts[c];
        write(io, cut.layer);
        write(io, cut.drop);
        write(io, cut.score);
        write(io, cut.pick);
        write(io, cut.score_number);
        write(io, cut.pick_number);
        write(io, (uint8_t) cut.weigh);
        write(io, (uint8_t) cut.merge);
    }
}

pyfastv_params read_schedule(llama_io_read_i & io, int32_t n_cells) {
    pyfastv_params res = {};
    res.size    = sizeof(res);
    res.recall  = read<float>(io);
    res.n_cells = n_cells;
    res.n_cuts  = read<int32_t>(io);
    if (res.n_cuts < 1 || res.n_cuts > PYFASTV_MAX_CUTS) {
        throw std::runtime_error("this state is broken: it claims " + std::to_string(res.n_cuts) + " cuts");
    }
    for (int32_t c = 0; c < res.n_cuts; ++c) {
        auto & cut = res.cuts[c];
        cut.layer        = read<int32_t>(io);
        cut.drop         = read<float>(io);
        cut.score        = read<int32_t>(io);
        cut.pick         = read<int32_t>(io);
        cut.score_number = read<double>(io);
        cut.pick_number  = read<double>(io);
        cut.weigh        = read<uint8_t>(io) != 0;
        cut.merge        = read<uint8_t>(io) != 0;
    }
    return res;
}

void write_sequence(llama_io_write_i & io, const sequence & seq, const row_width & width) {
    writer(io, width).put(seq);
}

sequence read_sequence(llama_io_read_i & io, const row_width & width, int32_t n_stages, int32_t & n_ubatches, const ledger_ptr & archive) {
    return reader(io, width, n_stages, n_ubatches, archive).get();
}

} // namespace pyfastv
