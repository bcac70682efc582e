#include "regex/matcher.h"

#include <algorithm>

namespace pyfastv {
namespace {

constexpr size_t word_bits = 64;

bool get(const std::vector<uint64_t> & bits, size_t i) {
    return bits[i / word_bits] >> i % word_bits & 1;
}

void set(std::vector<uint64_t> & bits, size_t i) {
    bits[i / word_bits] |= uint64_t(1) << i % word_bits;
}

} // namespace

matcher::matcher(const pattern & what, const char32_t * text, size_t n)
    : what(what), text(text), n(n), n_row((what.n_splits + word_bits - 1) / word_bits * word_bits),
      visited((n + 1)*n_row / word_bits), succeeded(what.splits_ahead ? visited.size() : 0) {}

std::optional<std::pair<size_t, size_t>> matcher::search(size_t at) {
    for (; at <= n; ++at) {
        if (const auto end = match(at)) {
            return std::make_pair(at, *end);
        }
    }
    return std::nullopt;
}

std::optional<size_t> matcher::match(size_t at, bool may_be_empty) {
    const auto end = run(what.first, at, may_be_empty, false);
    if (end) {
        // the splits on the way to the match did not fail: of these the next search can meet those at its end
        const auto row = visited.begin() + *end*n_row / word_bits;
        std::fill(row, row + n_row / word_bits, 0);
    }
    return end;
}

std::optional<size_t> matcher::run(uint32_t step, size_t at, bool may_be_empty, bool ahead) {
    const size_t begin  = at;
    const size_t n_open = open.size();
    const size_t n_path = path.size();

    for (;;) {
        const auto & here = what.steps[step];

        bool goes_on = false;
        bool done    = false;
        switch (here.kind) {
            case pattern::step_kind::match:
                done = may_be_empty || at > begin;
                break;
            case pattern::step_kind::take:
                goes_on = at < n && what.sets[here.other].has(text[at]);
                at += goes_on;
                break;
            case pattern::step_kind::split: {
                const size_t i = bit(here.n_split, at);
                if (get(visited, i)) {
                    done = ahead && get(succeeded, i);
                    break;
                }
                set(visited, i);
                open.push_back({ here.other, at, path.size() });
                if (ahead) {
                    path.push_back(i);
                    open.back().n_path = path.size();
                }
                goes_on = true;
                break;
            }
            case pattern::step_kind::ahead:
                goes_on = run(here.other, at, true, true).has_value();
                break;
            case pattern::step_kind::not_ahead:
                goes_on = !run(here.other, at, true, true);
                break;
            case pattern::step_kind::at_end:
                goes_on = at == n;
                break;
        }

        if (done) {
            for (size_t i = n_path; i < path.size(); ++i) {
                set(succeeded, path[i]);
            }
        } else if (goes_on) {
            step = here.next;
            continue;
        } else if (open.size() > n_open) {
            step = open.back().step;
            at   = open.back().at;
            path.resize(open.back().n_path);
            open.pop_back();
            continue;
        }
        open.resize(n_open);
        path.resize(n_path);
        return done ? std::optional<size_t>(at) : std::nullopt;
    }
}

} // namespace pyfastv
