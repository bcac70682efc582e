#include "memory/sequence.h"

#include <algorithm>
#include <iterator>
#include <unordered_set>
#include <utility>

namespace pyfastv {

int32_t picture::n_tokens() const {
    int32_t n = 0;
    for (const auto & slice : slices) {
        n += slice.n;
    }
    return n;
}

bool sequence::has_dropped(int32_t n_stages) const {
    return std::any_of(tokens.begin(), tokens.end(), [n_stages](const visual_token & token) {
        return !token.gone && token.entered < n_stages;
    });
}

bool sequence::last_picture_waits() const {
    return !pictures.empty() && std::any_of(pending.begin(), pending.end(), [this](const staged_row & row) {
        return row.token >= pictures.back().first;
    });
}

int32_t sequence::add_tokens(const std::vector<position> & pos, extent as, const std::string & id, int32_t nx, int32_t ny) {
    const auto first = (int32_t) tokens.size();
    const auto n     = (int32_t) pos.size();

    for (const auto & p : pos) {
        tokens.push_back({ p, 1, false, {}, {}, -1 });
    }

    if (pictures.empty() || as == extent::picture) {
        pictures.push_back({ id, first, {} });
    }
    auto & slices = pictures.back().slices;
    if (slices.empty() || as != extent::more) {
        slices.push_back({ 0, nx, ny });
    }
    slices.back().n += n;

    return first;
}

llama_pos sequence::taken_back_from(llama_pos p0) const {
    llama_pos res = INT32_MAX;
    for (const auto & turn : turns) {
        if (turn.rows.back().pos[0] >= p0) {
            res = std::min(res, turn.rows.front().pos[0]);
        }
    }
    return res;
}

sequence::undone sequence::truncate(llama_pos p0) {
    undone res;

    const auto beyond = [p0](const auto & row) { return row.pos[0] >= p0; };

    const auto drop_beyond = [&](auto & rows) {
        rows.erase(std::remove_if(rows.begin(), rows.end(), beyond), rows.end());
    };

    drop_beyond(pending);

    res.from = taken_back_from(p0);

    while (!turns.empty() && beyond(turns.back().rows.back())) {
        auto & last = turns.back();

        for (auto it = last.recalled.rbegin(); it != last.recalled.rend(); ++it) {
            const auto & before = it->before;
            tokens[it->token] = before;
            if (before.owner >= 0) {
                tokens[before.owner].size[before.entered - 1] += before.size_in(before.entered - 1);
            }
            res.recalled.push_back(*it);
        }
        drop_beyond(last.rows);
        for (auto & row : last.rows) {
            row.output = -1;
            if (row.visual()) {
                tokens[row.token] = { tokens[row.token].pos, 1, false, { row.hidden }, {}, -1 };
            }
        }
        pending.insert(pending.begin(), std::make_move_iterator(last.rows.begin()), std::make_move_iterator(last.rows.end()));
        turns.pop_back();
    }

    while (!tokens.empty() && beyond(tokens.back())) {
        tokens.pop_back();

        auto & slices = pictures.back().slices;
        if (--slices.back().n == 0) {
            slices.pop_back();
        }
        if (slices.empty()) {
            pictures.pop_back();
        }
    }
    for (auto & of_cut : scores) {
        of_cut.resize(std::min(of_cut.size(), tokens.size()));
    }

    return res;
}

void sequence::erase(llama_pos p0, llama_pos p1) {
    const auto inside = [=](const auto & row) { return p0 <= row.pos[0] && row.pos[0] < p1; };

    const auto drop_inside = [&](std::vector<staged_row> & rows) {
        rows.erase(std::remove_if(rows.begin(), rows.end(), inside), rows.end());
    };

    drop_inside(pending);
    for (auto & turn : turns) {
        drop_inside(turn.rows);
    }
    // a turn without rows can no longer be cut, so nothing that it recalled can be taken back
    turns.erase(std::remove_if(turns.begin(), turns.end(), [](const turn & t) { return t.rows.empty(); }), turns.end());

    for (auto & token : tokens) {
        if (inside(token)) {
            token.gone   = true;
            token.hidden.clear();
        }
    }
}

template <typename F>
void sequence::for_each_position(F && f) {
    for (auto & row : pending) {
        f(row.pos[0]);
    }
    for (auto & turn : turns) {
        for (auto & row : turn.rows) {
            f(row.pos[0]);
        }
        for (auto & recall : turn.recalled) {
            f(recall.before.pos[0]);
        }
    }
    for (auto & token : tokens) {
        if (!token.gone) {
            f(token.pos[0]);
        }
    }
}

void sequence::shift(llama_pos p0, llama_pos p1, llama_pos delta) {
    for_each_position([=](llama_pos & pos) {
        if (p0 <= pos && pos < p1) {
            pos += delta;
        }
    });
}

void sequence::divide(llama_pos p0, llama_pos p1, int d) {
    for_each_position([=](llama_pos & pos) {
        if (p0 <= pos && pos < p1) {
            pos /= d;
        }
    });
}

void sequence::append(sequence other) {
    if (empty()) {
        *this = std::move(other);
        return;
    }

    const auto n_before = (int32_t) tokens.size();

    const auto renumber = [n_before](std::vector<staged_row> & rows) {
        for (auto & row : rows) {
            if (row.visual()) {
                row.token += n_before;
            }
            if (!row.scores.empty()) {
                row.scores.insert(row.scores.begin(), n_before, 0.0f);
            }
        }
    };
    const auto move_to = [](auto & to, auto & from) {
        to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
    };

    renumber(other.pending);
    for (auto & turn : other.turns) {
        renumber(turn.rows);
        for (auto & recall : turn.recalled) {
            recall.token += n_before;
        }
    }
    for (auto & picture : other.pictures) {
        picture.first += n_before;
    }
    scores.clear();

    move_to(tokens,   other.tokens);
    move_to(pictures, other.pictures);
    move_to(pending,  other.pending);
    move_to(turns,    other.turns);
}

size_t sequence::archive_bytes(int64_t n_embd) const {
    std::unordered_set<const float *> rows;

    for (const auto & row : pending) {
        rows.insert(row.hidden.get());
    }
    for (const auto & turn : turns) {
        for (const auto & row : turn.rows) {
            rows.insert(row.hidden.get());
        }
    }
    for (const auto & token : tokens) {
        for (const auto & hidden : token.hidden) {
            rows.insert(hidden.get());
        }
    }
    rows.erase(nullptr);

    return rows.size()*n_embd*sizeof(float);
}

} // namespace pyfastv
