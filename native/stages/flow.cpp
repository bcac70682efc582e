#include "stages/flow.h"

#include "choose/grid.h"
#include "choose/parts.h"
#include "choose/similarity.h"
#include "products/parallel.h"
#include "products/products.h"
#include "settings/rules.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <map>
#include <utility>

namespace pyfastv {

flow::flow(llama_seq_id seq_id, const sequence & seq, const pyfastv_params & schedule) :
    seq_id(seq_id), seq(&seq), schedule(schedule), rows(seq.pending), pictures(seq.pictures), tokens(seq.tokens), scores(seq.scores) {}

bool flow::drops() const {
    return std::any_of(schedule.cuts, schedule.cuts + schedule.n_cuts, [](const auto & cut) { return cut.drop > 0.0f; });
}

std::vector<patch_grid> grids_of(const picture & picture) {
    std::vector<patch_grid> res;

    for (const auto & slice : picture.slices) {
        const auto grids = grids_from(slice.n, slice.nx, slice.ny);
        res.insert(res.end(), grids.begin(), grids.end());
    }

    return res;
}

size_t flow::first_voter(const pyfastv_cut & rule) const {
    size_t first = rows.size();
    switch (score_rule_of(rule).who) {
        case voters::all_rows:
            first = std::find_if(rows.begin(), rows.end(), [](const auto & row) { return row.visual(); }) - rows.begin();
            return first == rows.size() ? 0 : first;
        case voters::question:
            while (first > 0 && !rows[first - 1].visual()) {
                first--;
            }
            return first;
        case voters::last_row:
        case voters::nobody:
            return first;
    }
    return first;
}

size_t flow::first_read(int32_t cut) const {
    if (rows.empty() || !reads_attention(rule(cut))) {
        return rows.size();
    }
    return std::min(first_voter(rule(cut)), rows.size() - 1);
}

std::vector<float> flow::token_scores(const pyfastv_cut & rule) const {
    std::vector<float> res(tokens.size(), 0.0f);

    // tokens come to exist as rows are decoded: an earlier row has paid nothing to later ones
    const auto add = [&](const staged_row & row, bool max) {
        const size_t n = std::min(res.size(), row.scores.size());
        for (size_t i = 0; i < n; ++i) {
            res[i] = max ? std::max(res[i], row.scores[i]) : res[i] + row.scores[i];
        }
    };

    const bool text_only = score_rule_of(rule).who == voters::question;
    size_t     n_voters  = 0;

    for (size_t i = first_voter(rule); i < rows.size(); ++i) {
        if (!(text_only && rows[i].audio)) {
            add(rows[i], score_rule_of(rule).highest);
            n_voters++;
        }
    }
    if (every_row_votes(rule) && !score_rule_of(rule).highest) {
        std::for_each(res.begin(), res.end(), [n_voters](float & score) { score /= std::max<size_t>(n_voters, 1); });
    }

    if (n_voters == 0) {
        // the last row; or, if rows behind it were removed again or it is the picture itself, the last that was read
        const auto last = std::find_if(rows.rbegin(), rows.rend(), [](const auto & row) { return !row.scores.empty(); });
        if (last != rows.rend()) {
            add(*last, true);
        }
    }

    return res;
}

void flow::choose(int32_t cut, bool recalls, const tools & with) {
    const auto & rule      = this->rule(cut);
    const auto   of_tokens = token_scores(rule);

    std::vector<uint8_t> arrives(tokens.size(), 0); // with these rows
    std::vector<uint8_t> is_new (tokens.size(), 0); // of those, the ones that were not recalled
    std::vector<uint8_t> enters (tokens.size(), 0);
    for (const auto & row : rows) {
        if (row.visual()) {
            arrives[row.token] = 1;
            is_new [row.token] = !row.recalled();
            tokens[row.token].hidden.resize(cut + 1);
            tokens[row.token].hidden[cut] = row.hidden;
            // somebody will read the logits of these, whatever their scores
            enters[row.token] = row.output >= 0;
        }
    }

    scores.resize(std::max<size_t>(scores.size(), cut + 1));
    scores[cut].resize(tokens.size(), 0.0f);

    std::vector<staged_row> back;

    for (auto & picture : pictures) {
        const auto    first = picture.first;
        const int32_t n     = picture.n_tokens();

        const auto any_of = [&](const std::vector<uint8_t> & flags) { return std::count(flags.begin() + first, flags.begin() + first + n, 1) > 0; };

        const bool asks_again = recalls && reads_attention(rule);
        const bool weighs     = rule.weigh && any_of(is_new);

        if (!any_of(arrives) && !asks_again) {
            continue;
        }

        auto input = scores_of(picture, cut, of_tokens);
        if (score_rule_of(rule).drawn) {
            input.scores = random_scores(n, (uint32_t) rule.score_number);
        }
        std::vector<int32_t> here; // tokens at the cut, the rows of the similarity
        if (pick_rule_of(rule).compares || weighs) {
            for (int32_t i = 0; i < n; ++i) {
                if (input.present[i]) {
                    here.push_back(first + i);
                }
            }
            input.similarity = similarity_of(picture, cut, here, with);
        }
        std::transform(input.scores.begin(), input.scores.end(), input.present.begin(), scores[cut].begin() + first,
                [](float score, uint8_t present) { return present ? score : 0.0f; });

        input.run     = [&](size_t n, const std::function<void(size_t)> & f) { in_parallel(n, with.backend, f); };
        input.stopped = with.stopped;

        const auto chosen = pyfastv::choose(input, rule);

        for (const int32_t i : chosen) {
            enters[first + i] |= arrives[first + i];
        }
        if (weighs) {
            weigh(cut, here, input.similarity, enters);
        }
        if (asks_again) {
            recall_tokens(picture, chosen, cut, arrives, back);
        }
    }

    if (rule.merge) {
        merge(is_new, enters, with);
    }
    enter(cut, rule, enters, std::move(back));
}

std::vector<similar_part> flow::similarity_of(picture & picture, int32_t cut, const std::vector<int32_t> & here, const tools & with) const {
    std::vector<hidden_row> hidden;
    std::transform(here.begin(), here.end(), std::back_inserter(hidden), [&](int32_t token) { return tokens[token].hidden[cut]; });

    picture.similarity.resize(std::max<size_t>(picture.similarity.size(), cut + 1));
    auto & matrix = picture.similarity[cut];
    if (!matrix || !matrix->is_of(hidden)) {
        matrix = std::make_shared<similarity_matrix>(similarities(hidden, with.n_embd, with.backend, with.similarities));
    }
    return matrix->view();
}

picture_scores flow::scores_of(const picture & picture, int32_t cut, const std::vector<float> & of_tokens) const {
    const auto    first = picture.first;
    const int32_t n     = picture.n_tokens();

    picture_scores res;
    res.scores.assign(of_tokens.begin() + first, of_tokens.begin() + first + n);
    res.grids = grids_of(picture);
    for (int32_t i = 0; i < n; ++i) {
        const auto & token = tokens[first + i];
        res.present.push_back(!token.gone && token.entered > cut);
    }
    return res;
}

void flow::merge(const std::vector<uint8_t> & is_new, const std::vector<uint8_t> & enters, const tools & with) {
    for (const auto & picture : pictures) {
        std::vector<size_t>  visual;
        std::vector<uint8_t> is_kept;
        for (size_t i = 0; i < rows.size(); ++i) {
            const int32_t token = rows[i].token;
            if (token >= picture.first && token < picture.first + picture.n_tokens() && is_new[token]) {
                visual.push_back(i);
                is_kept.push_back(enters[token]);
            }
        }
        merge_rows(rows, visual, is_kept, with);
    }
}

void flow::enter(int32_t cut, const pyfastv_cut & rule, const std::vector<uint8_t> & enters, std::vector<staged_row> back) {
    n_kept = 0;

    std::vector<staged_row> next = std::move(back);
    for (auto & row : rows) {
        if (row.visual()) {
            if (!enters[row.token]) {
                continue;
            }
            auto & token = tokens[row.token];
            token.entered = cut + 2;
            if ((int32_t) token.size.size() == cut) {
                token.size.push_back(rule.weigh ? token.size_in(cut) : 1.0f);
            }
            n_kept += !row.recalled();
        }
        next.push_back(std::move(row));
    }
    rows = std::move(next);
}

size_t recall_budget(size_t n, float recall) {
    return (size_t) std::nearbyint(std::round((double) recall*n*1e6)/1e6); // the default rounding mode is half to even
}

void flow::weigh(int32_t cut, const std::vector<int32_t> & here, const std::vector<similar_part> & similarity, const std::vector<uint8_t> & enters) {
    for (const int32_t index : here) {
        if (enters[index]) {
            tokens[index].size.resize(cut);
            tokens[index].size.push_back(tokens[index].size_in(cut));
        }
    }
    const int32_t * first = here.data(); // of the part
    for (const auto & part : similarity) {
        for (size_t i = 0; i < part.n; ++i) {
            auto & token = tokens[first[i]];
            if (enters[first[i]]) {
                continue;
            }
            const float * row = part.cosines + i*part.n;

            token.owner = -1;
            float highest = 0.0f;
            for (size_t j = 0; j < part.n; ++j) {
                if (enters[first[j]] && (token.owner < 0 || row[j] > highest)) {
                    token.owner = first[j];
                    highest     = row[j];
                }
            }
            if (token.owner >= 0) {
                tokens[token.owner].size[cut] += token.size_in(cut);
            }
        }
        first += part.n;
    }
}

void flow::recall_tokens(const picture & picture, const std::vector<int32_t> & chosen, int32_t cut, const std::vector<uint8_t> & arrives,
        std::vector<staged_row> & back) {
    std::vector<int32_t> candidates;
    for (const int32_t i : chosen) {
        const int32_t token = picture.first + i;
        if (tokens[token].entered == cut + 1 && !arrives[token]) {
            candidates.push_back(token);
        }
    }

    const size_t budget = recall_budget(picture.n_tokens(), schedule.recall);
    const auto rank   = [&](int32_t token) { return std::isnan(scores[cut][token]) ? -HUGE_VALF : scores[cut][token]; }; // std::sort() needs an order
    const auto higher = [&](int32_t a, int32_t b) { return rank(a) != rank(b) ? rank(a) > rank(b) : a < b; };

    std::sort(candidates.begin(), candidates.end(), higher);
    candidates.resize(std::min(candidates.size(), budget));
    std::sort(candidates.begin(), candidates.end());

    for (const int32_t index : candidates) {
        auto & token = tokens[index];

        recalled.push_back({ index, token });

        back.push_back({ token.pos, staged_row::no_ubatch, -1, index, true, false, false, token.hidden[cut], token.per_layer, {} });

        // it speaks for itself again
        const float own = token.size_in(cut);
        if (token.owner >= 0) {
            tokens[token.owner].size[cut] -= own;
        }
        token.size.push_back(token.owner >= 0 ? own : 1.0f);
        token.owner   = -1;
        token.entered = cut + 2;
    }
}

// [number of dropped] the kept row that is nearest by cosine, counted among the kept
static std::vector<size_t> nearest_of(const std::vector<staged_row> & rows, const std::vector<size_t> & kept, const std::vector<size_t> & dropped,
        const flow::tools & with) {
    constexpr size_t block = 1024; // dropped rows at a time

    const auto together = [&](const size_t * first, size_t n) {
        std::vector<float> res;
        res.reserve(n*with.n_embd);
        for (size_t i = 0; i < n; ++i) {
            const float * row = rows[first[i]].hidden.get();
            res.insert(res.end(), row, row + with.n_embd);
        }
        return res;
    };

    const auto unit = unit_rows(together(kept.data(), kept.size()).data(), kept.size(), with.n_embd);

    std::vector<size_t> res;
    for (size_t i = 0; i < dropped.size(); i += block) {
        const size_t n = std::min(block, dropped.size() - i);

        // the length of the dropped row is the same for all
        const auto products = row_products(together(dropped.data() + i, n).data(), n, unit.data(), kept.size(), with.n_embd, with.backend);
        for (size_t r = 0; r < n; ++r) {
            const float * row = products.data() + r*kept.size();
            res.push_back(std::max_element(row, row + kept.size()) - row);
        }
    }
    return res;
}

void merge_rows(std::vector<staged_row> & rows, const std::vector<size_t> & visual, const std::vector<uint8_t> & is_kept, const flow::tools & with) {
    std::map<size_t, std::vector<size_t>> members; // dropped rows, by the kept one that they go into

    const auto part_of = [&](size_t begin, size_t end, bool is) {
        std::vector<size_t> res;
        for (size_t i = begin; i < end; ++i) {
            if ((is_kept[i] != 0) == is) {
                res.push_back(visual[i]);
            }
        }
        return res;
    };

    const auto first = parts_of(visual.size());
    for (size_t p = 0; p + 1 < first.size(); ++p) {
        const auto dropped = part_of(first[p], first[p + 1], false);

        auto kept = part_of(first[p], first[p + 1], true);
        if (kept.empty()) {
            kept = part_of(0, visual.size(), true);
        }
        if (kept.empty() || dropped.empty()) {
            continue;
        }
        const auto nearest = nearest_of(rows, kept, dropped, with);
        for (size_t i = 0; i < dropped.size(); ++i) {
            members[kept[nearest[i]]].push_back(dropped[i]);
        }
    }

    for (const auto & member : members) {
        auto &       own    = rows[member.first];
        const auto & others = member.second;

        own.hidden = new_hidden_row(with.n_embd, with.archive, [&](float * mean) {
            std::copy_n(own.hidden.get(), with.n_embd, mean);
            for (const size_t i : others) {
                std::transform(mean, mean + with.n_embd, rows[i].hidden.get(), mean, std::plus<float>());
            }
            std::for_each_n(mean, with.n_embd, [&](float & value) { value /= others.size() + 1; });
        });
    }
}

} // namespace pyfastv
