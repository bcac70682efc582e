#include "stages/sequence.h"

#include <algorithm>
#include <iterator>
#include <numeric>
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

size_t sequence::picture_of(int32_t token) const {
    const auto behind = std::upper_bound(pictures.begin(), pictures.end(), token, [](int32_t t, const picture & p) { return t < p.first; });

    return behind - pictures.begin() - 1;
}

bool sequence::last_picture_waits() const {
    return !pictures.empty() && std::any_of(pending.begin(), pending.end(), [this](const staged_row & row) {
        return row.token >= pictures.back().first;
    });
}

int32_t sequence::add_tokens(const std::vector<position> & pos, extent as, const std::string & id, int32_t nx, int32_t ny) {
    const auto first = (int32_t) tokens.size();
    const auto n     = (int32_t) pos.size();

    // either all is added or, if memory runs out, nothing
    if (tokens.size() + pos.size() > tokens.capacity()) {
        tokens.reserve(std::max(tokens.size() + pos.size(), 2*tokens.capacity()));
    }

    if (pictures.empty() || as == extent::picture) {
        pictures.push_back({ id, first, { { 0, nx, ny } }, {} });
    } else if (as != extent::more) {
        pictures.back().slices.push_back({ 0, nx, ny });
    }
    pictures.back().slices.back().n += n;

    for (const auto & p : pos) {
        tokens.push_back({ p, 1, false, {}, {}, -1, nullptr });
    }

    return first;
}

llama_pos sequence::removable_from(llama_pos later, bool forgets) const {
    llama_pos res = later;
    for (const auto & turn : turns) {
        if (turn.rows.front().pos[0] < later || (!forgets && !turn.recalled.empty())) {
            res = std::max(res, turn.rows.back().pos[0] + 1);
        }
    }
    return res;
}

void sequence::settle(llama_pos later) {
    const auto began_before = [later](const turn & t) { return t.rows.front().pos[0] < later; };

    turns.erase(std::remove_if(turns.begin(), turns.end(), began_before), turns.end());
}

sequence::undone sequence::truncate(llama_pos p0) {
    undone res;

    const auto beyond = [p0](const auto & row) { return row.pos[0] >= p0; };

    const auto drop_beyond = [&](auto & rows) {
        rows.erase(std::remove_if(rows.begin(), rows.end(), beyond), rows.end());
    };

    drop_beyond(pending);

    for (const auto & turn : turns) {
        if (beyond(turn.rows.back())) {
            res.from = std::min(res.from, turn.rows.front().pos[0]);
        }
    }

    while (!turns.empty() && beyond(turns.back().rows.back())) {
        auto & last = turns.back();

        for (auto it = last.recalled.rbegin(); it != last.recalled.rend(); ++it) {
            const auto & before = it->before;
            tokens[it->token] = before;
            // an owner that is not in the stage behind has nothing to give back: only a state from outside can say so
            if (before.owner >= 0 && tokens[before.owner].entered > before.entered) {
                tokens[before.owner].size[before.entered - 1] += before.size_in(before.entered - 1);
            }
            if (!before.gone) {
                res.recalled.push_back(*it);
            }
        }
        drop_beyond(last.rows);
        for (auto & row : last.rows) {
            row.output = -1;
            if (row.visual()) {
                tokens[row.token] = { tokens[row.token].pos, 1, false, { row.hidden }, {}, -1, row.per_layer };
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
    // those in front of a token that is gone, whose position did not move with theirs
    remove(p0, INT32_MAX);

    for (auto & of_cut : scores) {
        of_cut.resize(std::min(of_cut.size(), tokens.size()));
    }

    // positions that were moved by halves, or not at all as those of tokens that are gone, may have parted rows and tokens
    const auto n = (int32_t) tokens.size();

    const auto drop_orphans = [n](auto & list) {
        list.erase(std::remove_if(list.begin(), list.end(), [n](const auto & item) { return item.token >= n; }), list.end());
    };
    const auto drop_owner = [n](visual_token & token) { token.owner = token.owner < n ? token.owner : -1; };
    const auto trim_rows  = [&](std::vector<staged_row> & rows) {
        drop_orphans(rows);
        for (auto & row : rows) {
            row.scores.resize(std::min(row.scores.size(), tokens.size()));
        }
    };

    trim_rows(pending);
    std::for_each(tokens.begin(), tokens.end(), drop_owner);
    for (auto & turn : turns) {
        trim_rows(turn.rows);
        drop_orphans(turn.recalled);
        for (auto & recall : turn.recalled) {
            drop_owner(recall.before);
        }
    }
    turns.erase(std::remove_if(turns.begin(), turns.end(), [](const turn & t) { return t.rows.empty(); }), turns.end());

    return res;
}

void sequence::erase(llama_pos p0, llama_pos p1) {
    remove(p0, p1);
    forget_gone();
}

void sequence::forget_gone() {
    const auto for_each_row = [this](auto && f) {
        std::for_each(pending.begin(), pending.end(), f);
        for (auto & turn : turns) {
            std::for_each(turn.rows.begin(), turn.rows.end(), f);
        }
    };

    std::vector<uint8_t> needed(tokens.size());
    std::transform(tokens.begin(), tokens.end(), needed.begin(), [](const visual_token & token) { return !token.gone; });
    for_each_row([&](const staged_row & row) {
        if (row.visual()) {
            needed[row.token] = 1; // its position has parted from the token's
        }
    });

    constexpr int32_t    none = -1;
    std::vector<int32_t> number(tokens.size(), none); // anew
    int32_t              n = 0;

    std::vector<picture> left;
    left.reserve(pictures.size());

    for (auto & picture : pictures) {
        const auto first = needed.begin() + picture.first;
        if (std::count(first, first + picture.n_tokens(), 1) == 0) {
            continue;
        }
        std::iota(number.begin() + picture.first, number.begin() + picture.first + picture.n_tokens(), n);
        picture.first = n;
        n += picture.n_tokens();
        left.push_back(std::move(picture));
    }
    pictures = std::move(left);
    if (n == (int32_t) tokens.size()) {
        return;
    }

    const auto compact = [&](auto & of_tokens) { // what there is one of for each token
        size_t to = 0;
        for (size_t from = 0; from < of_tokens.size(); ++from) {
            if (number[from] != none && to != from) {
                of_tokens[to] = std::move(of_tokens[from]);
            }
            to += number[from] != none;
        }
        of_tokens.erase(of_tokens.begin() + to, of_tokens.end());
    };
    const auto renumber = [&](int32_t & token) { token = token < 0 ? token : number[token]; };

    for_each_row([&](staged_row & row) {
        renumber(row.token);
        compact(row.scores);
    });
    std::for_each(scores.begin(), scores.end(), compact);
    for (auto & turn : turns) {
        auto & recalled = turn.recalled;
        const auto is_gone = [&](const auto & recall) { return number[recall.token] == none; };
        recalled.erase(std::remove_if(recalled.begin(), recalled.end(), is_gone), recalled.end());
        for (auto & recall : recalled) {
            renumber(recall.token);
            renumber(recall.before.owner);
        }
    }
    compact(tokens);
    for (auto & token : tokens) {
        renumber(token.owner);
    }
    if (tokens.empty()) {
        turns.clear(); // of text alone: nothing can be taken back
    }
}

void sequence::remove(llama_pos p0, llama_pos p1) {
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

    const auto take_out = [&](visual_token & token) {
        if (inside(token)) {
            token.gone  = true;
            token.owner = -1;
            token.hidden.clear();
            token.per_layer = nullptr;
        }
    };

    std::for_each(tokens.begin(), tokens.end(), take_out);
    for (auto & turn : turns) {
        for (auto & recall : turn.recalled) {
            take_out(recall.before);
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
    erase(INT32_MIN, 0); // as the KV cache does
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

    const auto renumber_owner = [n_before](visual_token & token) {
        if (token.owner >= 0) {
            token.owner += n_before;
        }
    };

    renumber(other.pending);
    for (auto & turn : other.turns) {
        renumber(turn.rows);
        for (auto & recall : turn.recalled) {
            recall.token += n_before;
            renumber_owner(recall.before);
        }
    }
    std::for_each(other.tokens.begin(), other.tokens.end(), renumber_owner);
    for (auto & picture : other.pictures) {
        picture.first += n_before;
    }
    scores.clear();

    move_to(tokens,   other.tokens);
    move_to(pictures, other.pictures);
    move_to(pending,  other.pending);
    move_to(turns,    other.turns);
}

} // namespace pyfastv
