#include "stages/flow.h"

#include "choose/grid.h"
#include "choose/similarity.h"
#include "settings/rules.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <iterator>
#include <utility>

namespace pyfastv {

flow::flow(llama_seq_id seq_id, const sequence & seq) :
    seq_id(seq_id), seq(&seq), rows(seq.pending), pictures(seq.pictures), tokens(seq.tokens), scores(seq.scores) {}

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

size_t flow::first_read(const pyfastv_cut & rule) const {
    return rows.empty() ? 0 : std::min(first_voter(rule), rows.size() - 1);
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

void flow::choose(int32_t cut, const pyfastv_cut & rule, float recall, int64_t n_embd, ggml_backend_t backend) {
    const auto of_tokens = token_scores(rule);

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

        const bool asks_again = recall > 0.0f && reads_attention(rule);
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
            input.similarity = similarity_of(picture, cut, here, n_embd, backend);
        }
        std::transform(input.scores.begin(), input.scores.end(), input.present.begin(), scores[cut].begin() + first,
                [](float score, uint8_t present) { return present ? score : 0.0f; });

        const auto chosen = pyfastv::choose(input, rule);

        for (const int32_t i : chosen) {
            enters[first + i] |= arrives[first + i];
        }
        if (weighs) {
            weigh(cut, here, input.similarity, enters);
        }
        if (asks_again) {
            recall_tokens(picture, chosen, cut, arrives, recall, back);
        }
    }

    if (rule.merge) {
        merge(is_new, enters, n_embd);
    }
    enter(cut, rule, enters, std::move(back));
}

const float * flow::similarity_of(picture & picture, int32_t cut, const std::vector<int32_t> & here, int64_t n_embd, ggml_backend_t backend) const {
    std::vector<hidden_row> hidden;
    std::transform(here.begin(), here.end(), std::back_inserter(hidden), [&](int32_t token) { return tokens[token].hidden[cut]; });

    picture.similarity.resize(std::max<size_t>(picture.similarity.size(), cut + 1));
    auto & matrix = picture.similarity[cut];
    if (!matrix || matrix->rows != hidden) {
        matrix = std::make_shared<similarity_matrix>(similarities(std::move(hidden), n_embd, backend));
    }
    return matrix->cosines.data();
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

void flow::merge(const std::vector<uint8_t> & is_new, const std::vector<uint8_t> & enters, int64_t n_embd) {
    for (const auto & picture : pictures) {
        std::vector<size_t> kept, dropped;
        for (size_t i = 0; i < rows.size(); ++i) {
            const int32_t token = rows[i].token;
            if (token >= picture.first && token < picture.first + picture.n_tokens() && is_new[token]) {
                (enters[token] ? kept : dropped).push_back(i);
            }
        }
        merge_rows(rows, kept, dropped, n_embd);
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

void flow::weigh(int32_t cut, const std::vector<int32_t> & here, const float * similarity, const std::vector<uint8_t> & enters) {
    for (const int32_t index : here) {
        if (enters[index]) {
            tokens[index].size.resize(cut);
            tokens[index].size.push_back(tokens[index].size_in(cut));
        }
    }
    for (size_t i = 0; i < here.size(); ++i) {
        auto & token = tokens[here[i]];
        if (enters[here[i]]) {
            continue;
        }
        const float * row = similarity + i*here.size();

        token.owner = -1;
        float highest = 0.0f;
        for (size_t j = 0; j < here.size(); ++j) {
            if (enters[here[j]] && (token.owner < 0 || row[j] > highest)) {
                token.owner = here[j];
                highest     = row[j];
            }
        }
        if (token.owner >= 0) {
            tokens[token.owner].size[cut] += token.size_in(cut);
        }
    }
}

void flow::recall_tokens(const picture & picture, const std::vector<int32_t> & chosen, int32_t cut, const std::vector<uint8_t> & arrives,
        float recall, std::vector<staged_row> & back) {
    std::vector<int32_t> candidates;
    for (const int32_t i : chosen) {
        const int32_t token = picture.first + i;
        if (tokens[token].entered == cut + 1 && !arrives[token]) {
            candidates.push_back(token);
        }
    }

    const size_t budget = recall_budget(picture.n_tokens(), recall);
    const auto rank   = [&](int32_t token) { return std::isnan(scores[cut][token]) ? -HUGE_VALF : scores[cut][token]; }; // std::sort() needs an order
    const auto higher = [&](int32_t a, int32_t b) { return rank(a) != rank(b) ? rank(a) > rank(b) : a < b; };

    std::sort(candidates.begin(), candidates.end(), higher);
    candidates.resize(std::min(candidates.size(), budget));
    std::sort(candidates.begin(), candidates.end());

    for (const int32_t index : candidates) {
        auto & token = tokens[index];

        recalled.push_back({ index, token });

        back.push_back({ token.pos, staged_row::no_ubatch, -1, index, true, false, false, token.hidden[cut], {} });

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

// in parts, which the compiler may keep in vectors
static float dot(const float * a, const float * b, int64_t n) {
    std::array<float, 16> sums = {};

    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        for (int64_t j = 0; j < 16; ++j) {
            sums[j] += a[i + j]*b[i + j];
        }
    }
    float res = 0.0f;
    for (; i < n; ++i) {
        res += a[i]*b[i];
    }
    for (const float sum : sums) {
        res += sum;
    }
    return res;
}

void merge_rows(std::vector<staged_row> & rows, const std::vector<size_t> & kept, const std::vector<size_t> & dropped, int64_t n_embd) {
    if (kept.empty() || dropped.empty()) {
        return;
    }

    const auto inverse_norm = [&](const float * row) {
        const float square = dot(row, row, n_embd);
        return square > 0.0f ? 1.0f/std::sqrt(square) : 0.0f;
    };

    std::vector<float> scale(kept.size());
    std::transform(kept.begin(), kept.end(), scale.begin(), [&](size_t i) { return inverse_norm(rows[i].hidden.get()); });

    std::vector<std::vector<size_t>> members(kept.size());
    for (const size_t i : dropped) {
        size_t nearest = 0;
        float  highest = -2.0f*std::sqrt(dot(rows[i].hidden.get(), rows[i].hidden.get(), n_embd)) - 1.0f;
        for (size_t k = 0; k < kept.size(); ++k) {
            // the length of the dropped row is the same for all
            const float cosine = dot(rows[i].hidden.get(), rows[kept[k]].hidden.get(), n_embd)*scale[k];
            if (cosine > highest) {
                highest = cosine;
                nearest = k;
            }
        }
        members[nearest].push_back(i);
    }

    for (size_t k = 0; k < kept.size(); ++k) {
        if (members[k].empty()) {
            continue;
        }
        const float * own  = rows[kept[k]].hidden.get();
        auto          mean = std::make_shared<std::vector<float>>(own, own + n_embd);

        for (const size_t i : members[k]) {
            std::transform(mean->begin(), mean->end(), rows[i].hidden.get(), mean->begin(), std::plus<float>());
        }
        std::for_each(mean->begin(), mean->end(), [n = members[k].size() + 1](float & value) { value /= n; });

        rows[kept[k]].hidden = hidden_row(mean, mean->data());
    }
}

} // namespace pyfastv
