#include "regex/pattern.h"

#include <algorithm>
#include <cstring>

namespace pyfastv {
namespace {

using ranges = std::vector<std::pair<char32_t, char32_t>>;

constexpr uint32_t unbounded = UINT32_MAX;
constexpr uint32_t max_count = 1000;
constexpr size_t   max_steps = 20'000;
constexpr int      max_depth = 50;

struct unsupported {};

struct node {
    enum class kind { take, sequence, alternatives, repeat, ahead, not_ahead, at_end };

    kind              what;
    std::vector<node> parts;
    uint32_t          set = 0; // take
    uint32_t          min = 0; // repeat
    uint32_t          max = 0;

    bool can_be_empty() const {
        const auto is_empty = [](const node & part) { return part.can_be_empty(); };

        switch (what) {
            case kind::take:         return false;
            case kind::sequence:     return std::all_of(parts.begin(), parts.end(), is_empty);
            case kind::alternatives: return std::any_of(parts.begin(), parts.end(), is_empty);
            case kind::repeat:       return min == 0;
            default:                 return true;
        }
    }
};

class parser {
public:
    parser(const std::u32string & text, std::vector<char_set> & sets) : text(text), sets(sets) {}

    node parse() {
        node res = alternatives(0);
        require(at == text.size());
        return res;
    }

private:
    static void require(bool supported) {
        if (!supported) {
            throw unsupported();
        }
    }

    bool is(char32_t c) const { return at < text.size() && text[at] == c; }

    bool take(const char * what) {
        const size_t n = strlen(what);
        if (text.size() - at < n || !std::equal(what, what + n, text.begin() + at)) {
            return false;
        }
        at += n;
        return true;
    }

    char32_t take() {
        require(at < text.size());
        return text[at++];
    }

    node alternatives(int depth) {
        require(depth < max_depth);
        node res = { node::kind::alternatives, { sequence(depth) } };
        while (take("|")) {
            res.parts.push_back(sequence(depth));
        }
        return res;
    }

    node sequence(int depth) {
        node res = { node::kind::sequence, {} };
        while (at < text.size() && !is('|') && !is(')')) {
            res.parts.push_back(repeated(atom(depth)));
        }
        return res;
    }

    node atom(int depth) {
        if (take("(?=")) {
            return group(node::kind::ahead, depth);
        }
        if (take("(?!")) {
            return group(node::kind::not_ahead, depth);
        }
        if (take("(?:") || take("(")) {
            require(!is('?'));
            return group(node::kind::sequence, depth);
        }
        if (take("$")) {
            return { node::kind::at_end, {} };
        }
        if (take("[")) {
            return bracket();
        }
        bool   inverted = false;
        ranges chars;
        if (take("\\")) {
            inverted = escaped(chars);
        } else {
            const char32_t c = take();
            require(c == 0 || c > 127 || !strchr("^.*+?{}]", c));
            chars = { { c, c } };
        }
        return set(std::move(chars), inverted);
    }

    node group(node::kind what, int depth) {
        node res = { what, { alternatives(depth + 1) } };
        require(take(")"));
        return res;
    }

    node set(ranges chars, bool inverted) {
        sets.emplace_back(std::move(chars), inverted);

        node res = { node::kind::take, {} };
        res.set  = sets.size() - 1;
        return res;
    }

    // behind a backslash; true: all but these
    bool escaped(ranges & chars) {
        const char32_t c = take();
        switch (c) {
            case 's': case 'S': chars.insert(chars.end(), { { '\t', '\r' }, { ' ', ' ' } }); break;
            case 'd': case 'D': chars.insert(chars.end(), { { '0', '9' } }); break;
            case 'w': case 'W': chars.insert(chars.end(), { { '0', '9' }, { 'A', 'Z' }, { '_', '_' }, { 'a', 'z' } }); break;
            case 't': chars.emplace_back('\t', '\t'); break;
            case 'n': chars.emplace_back('\n', '\n'); break;
            case 'v': chars.emplace_back('\v', '\v'); break;
            case 'f': chars.emplace_back('\f', '\f'); break;
            case 'r': chars.emplace_back('\r', '\r'); break;
            default:
                require(c > ' ' && c < 127 && !is_word(c));
                chars.emplace_back(c, c);
        }
        return c == 'S' || c == 'D' || c == 'W';
    }

    static bool is_word(char32_t c) {
        return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_';
    }

    // behind the opening one
    node bracket() {
        const bool inverted = take("^");
        require(!is(']'));

        ranges chars;
        while (!take("]")) {
            const size_t before = chars.size();
            const bool   single = element(chars);
            if (!is('-') || text.compare(at, 2, U"-]") == 0) {
                continue;
            }
            at++;
            require(single && element(chars) && chars[before].first <= chars.back().first);
            chars[before].second = chars.back().second;
            chars.pop_back();
        }
        return set(std::move(chars), inverted);
    }

    // of a bracket; false: a class as \s
    bool element(ranges & chars) {
        if (take("\\")) {
            const char32_t c = at < text.size() ? text[at] : 0;
            require(!escaped(chars));
            return c != 's' && c != 'd' && c != 'w';
        }
        const char32_t c = take();
        require(c != '[');
        chars.emplace_back(c, c);
        return true;
    }

    node repeated(node what) {
        node res = { node::kind::repeat, {} };
        if (take("*")) {
            res.max = unbounded;
        } else if (take("+")) {
            res.min = 1;
            res.max = unbounded;
        } else if (take("?")) {
            res.max = 1;
        } else if (take("{")) {
            res.min = number();
            res.max = res.min;
            if (take(",")) {
                res.max = is('}') ? unbounded : number();
            }
            require(take("}") && res.min <= res.max);
        } else {
            return what;
        }
        require(!is('?') && !is('*') && !is('+') && !is('{') && !what.can_be_empty());
        res.parts.push_back(std::move(what));
        return res;
    }

    uint32_t number() {
        require(at < text.size() && text[at] >= '0' && text[at] <= '9');
        uint32_t res = 0;
        while (at < text.size() && text[at] >= '0' && text[at] <= '9') {
            res = 10*res + (text[at++] - '0');
            require(res <= max_count);
        }
        return res;
    }

    const std::u32string &  text;
    std::vector<char_set> & sets;
    size_t                  at = 0;
};

class compiler {
public:
    explicit compiler(pattern & res) : res(res) {}

    // the first of the steps that match `what` and go on at `next`
    uint32_t compile(const node & what, uint32_t next) {
        switch (what.what) {
            case node::kind::take:
                return add(pattern::step_kind::take, next, what.set);
            case node::kind::sequence:
                for (auto part = what.parts.rbegin(); part != what.parts.rend(); ++part) {
                    next = compile(*part, next);
                }
                return next;
            case node::kind::alternatives: {
                uint32_t first = compile(what.parts.back(), next);
                for (auto part = what.parts.rbegin() + 1; part != what.parts.rend(); ++part) {
                    first = split(compile(*part, next), first);
                }
                return first;
            }
            case node::kind::repeat:
                return repeat(what, next);
            case node::kind::ahead:
                return ahead(pattern::step_kind::ahead, what, next);
            case node::kind::not_ahead:
                return ahead(pattern::step_kind::not_ahead, what, next);
            case node::kind::at_end:
                break;
        }
        return add(pattern::step_kind::at_end, next, 0);
    }

    uint32_t add(pattern::step_kind kind, uint32_t next, uint32_t other) {
        if (res.steps.size() >= max_steps) {
            throw unsupported();
        }
        res.steps.push_back({ kind, next, other, 0 });
        return res.steps.size() - 1;
    }

private:
    uint32_t split(uint32_t next, uint32_t other) {
        const uint32_t at = add(pattern::step_kind::split, next, other);
        res.steps[at].n_split = res.n_splits++;
        res.splits_ahead |= is_ahead;
        return at;
    }

    uint32_t repeat(const node & what, uint32_t next) {
        uint32_t first = next;
        if (what.max == unbounded) {
            first = split(0, next);
            const uint32_t body = compile(what.parts[0], first);
            res.steps[first].next = body;
        } else {
            for (uint32_t i = what.min; i < what.max; ++i) {
                first = split(compile(what.parts[0], first), next);
            }
        }
        for (uint32_t i = 0; i < what.min; ++i) {
            first = compile(what.parts[0], first);
        }
        return first;
    }

    uint32_t ahead(pattern::step_kind kind, const node & what, uint32_t next) {
        const bool was_ahead = is_ahead;
        is_ahead = true;
        const uint32_t body = compile(what.parts[0], add(pattern::step_kind::match, 0, 0));
        is_ahead = was_ahead;
        return add(kind, next, body);
    }

    pattern & res;
    bool      is_ahead = false;
};

} // namespace

char_set::char_set(std::vector<std::pair<char32_t, char32_t>> ranges, bool inverted) : ranges(std::move(ranges)), inverted(inverted) {
    // ranges that overlap become one, so that the last that begins at or before a character decides
    std::sort(this->ranges.begin(), this->ranges.end());
    size_t n = 0;
    for (const auto & range : this->ranges) {
        if (n > 0 && range.first <= this->ranges[n - 1].second) {
            this->ranges[n - 1].second = std::max(this->ranges[n - 1].second, range.second);
        } else {
            this->ranges[n++] = range;
        }
    }
    this->ranges.resize(n);

    for (const auto & range : this->ranges) {
        for (char32_t c = range.first; c <= range.second && c < 256; ++c) {
            low[c / 64] |= uint64_t(1) << c % 64;
        }
    }
    for (auto & word : low) {
        word ^= inverted ? UINT64_MAX : 0;
    }
}

bool char_set::has_high(char32_t c) const {
    const auto above = std::upper_bound(ranges.begin(), ranges.end(), c, [](char32_t c, const auto & range) { return c < range.first; });
    return (above != ranges.begin() && c <= (above - 1)->second) != inverted;
}

std::optional<pattern> parse_pattern(const std::u32string & expression) {
    try {
        pattern    res;
        const auto tree = parser(expression, res.sets).parse();
        compiler   compiler(res);
        res.first = compiler.compile(tree, compiler.add(pattern::step_kind::match, 0, 0));
        return res;
    } catch (const unsupported &) {
        return std::nullopt;
    }
}

} // namespace pyfastv
