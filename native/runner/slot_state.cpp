#include "runner/slot_state.h"

#include "runner/errors.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace pyfastv {
namespace {

constexpr int32_t most_positions = 1 << 30; // of a sequence

constexpr char state_magic[8] = { 'p', 'y', 'f', 's', 'l', 'o', 't', '2' }; // the last is its version

class writer {
public:
    explicit writer(state_bytes & to) : to(to) {}

    template <typename T>
    void put(const T & value) {
        static_assert(std::is_trivially_copyable_v<T>);
        const auto * bytes = reinterpret_cast<const uint8_t *>(&value);
        to.insert(to.end(), bytes, bytes + sizeof(value));
    }

    // strings, too
    template <typename List>
    void put_all(const List & values) {
        put((uint32_t) values.size());
        for (const auto & value : values) {
            put(value);
        }
    }

private:
    state_bytes & to;
};

class reader {
public:
    reader(const uint8_t * data, size_t size) : data(data), left(size) {}

    template <typename T>
    T get() {
        static_assert(std::is_trivially_copyable_v<T>);
        require(left >= sizeof(T));
        T value;
        memcpy(&value, data, sizeof(T));
        data += sizeof(T);
        left -= sizeof(T);
        return value;
    }

    // the number of entries that follow; each has a byte at least, so that a claim takes no memory
    uint32_t count() {
        const auto n = get<uint32_t>();
        require(n <= left);
        return n;
    }

    template <typename List>
    List get_all() {
        List res;
        for (uint32_t n = count(); n > 0; --n) {
            res.push_back(get<typename List::value_type>());
        }
        return res;
    }

    size_t n_left() const { return left; }

    static void require(bool fact) {
        if (!fact) {
            throw error(error_kind::option, "this state is broken: what its slot held does not fit together");
        }
    }

private:
    const uint8_t * data;
    size_t          left;
};

void put(writer & to, const prompt_piece & piece) {
    to.put(piece.token);
    if (!piece.visual()) {
        return;
    }
    to.put_all(piece.image_id);
    to.put(piece.slice);
    to.put_all(piece.content);
    to.put(piece.n_encoded);
    to.put(piece.n_tokens);
    to.put(piece.n_pos);
    to.put_all(piece.turbo);
    to.put_all(piece.reducer);
    to.put_all(piece.skip);
    to.put((uint8_t) piece.renumber);
    to.put_all(piece.question);
    to.put_all(piece.patches);
    to.put_all(piece.places);
}

prompt_piece get_piece(reader & from) {
    prompt_piece res;
    res.token = from.get<llama_token>();
    if (!res.visual()) {
        return res;
    }
    res.image_id  = from.get_all<std::string>();
    res.slice     = from.get<int32_t>();
    res.content   = from.get_all<std::string>();
    res.n_encoded = from.get<int32_t>();
    res.n_tokens  = from.get<int32_t>();
    res.n_pos     = from.get<int32_t>();
    res.turbo     = from.get_all<std::string>();
    res.reducer   = from.get_all<std::string>();
    res.skip      = from.get_all<std::string>();
    res.renumber  = from.get<uint8_t>() != 0;
    res.question  = from.get_all<std::vector<llama_token>>();
    res.patches   = from.get_all<std::vector<patch_grid>>();
    res.places    = from.get_all<std::vector<int32_t>>();
    return res;
}

// nothing that is indexed by what was read may lead outside
void check(const prompt_piece & piece, int32_t n_vocab) {
    const auto is_token = [n_vocab](llama_token token) { return token >= 0 && token < n_vocab; };

    if (!piece.visual()) {
        reader::require(is_token(piece.token));
        return;
    }
    // what is merged or reduced keeps its positions, which may be more than there are tokens
    const auto is_count = [](int32_t n) { return n >= 0 && n <= most_positions; };

    reader::require(piece.slice >= 0 && is_count(piece.n_encoded) && is_count(piece.n_tokens) && is_count(piece.n_pos));
    reader::require(std::all_of(piece.question.begin(), piece.question.end(), is_token));

    int64_t n_patches = 0;
    for (const auto & grid : piece.patches) {
        reader::require(grid.nx > 0 && grid.ny > 0 && grid.nx <= INT16_MAX && grid.ny <= INT16_MAX);
        n_patches += (int64_t) grid.nx*grid.ny;
    }
    reader::require(piece.places.empty() || piece.places.size() == (size_t) piece.n_tokens);
    reader::require(std::all_of(piece.places.begin(), piece.places.end(), [n_patches](int32_t place) {
        return place >= 0 && place < n_patches;
    }));
}

} // namespace

llama_pos slot_contents::n_past() const {
    llama_pos res = 0;
    for (const auto & piece : evaluated) {
        res += piece.n_pos;
    }
    return res;
}

int64_t slot_contents::n_tokens() const {
    int64_t res = 0;
    for (const auto & piece : evaluated) {
        res += piece.n_tokens;
    }
    return res;
}

state_bytes pack(const slot_contents & contents) {
    state_bytes res;
    writer      to(res);

    to.put(state_magic);
    to.put_all(contents.schedule);
    to.put((uint32_t) contents.evaluated.size());
    for (const auto & piece : contents.evaluated) {
        put(to, piece);
    }
    to.put((uint32_t) contents.questions.size());
    for (const auto & question : contents.questions) {
        to.put(question.end);
        to.put(question.n_visual);
    }
    return res;
}

slot_contents unpack(const uint8_t * data, size_t size, int32_t n_vocab, int64_t n_ctx, size_t & n_read) {
    if (size < sizeof(state_magic) || memcmp(data, state_magic, sizeof(state_magic)) != 0) {
        throw error(error_kind::option, "this is not the state of a slot, or one of another version");
    }
    reader from(data + sizeof(state_magic), size - sizeof(state_magic));

    slot_contents res;
    res.schedule = from.get_all<std::string>();

    int64_t n_tokens = 0, n_pos = 0, n_visual = 0;
    for (uint32_t n = from.count(); n > 0; --n) {
        auto piece = get_piece(from);
        check(piece, n_vocab);
        n_tokens += piece.n_tokens;
        n_pos    += piece.n_pos;
        n_visual += piece.visual() ? piece.n_tokens : 0;
        reader::require(n_pos <= most_positions);
        if (n_tokens > n_ctx) {
            throw error(error_kind::option, "this state has more tokens than there is room for: n_ctx is " + std::to_string(n_ctx));
        }
        res.evaluated.push_back(std::move(piece));
    }
    reader::require(!res.evaluated.empty());

    for (uint32_t n = from.count(); n > 0; --n) {
        slot::asked question = {};
        question.end      = from.get<llama_pos>();
        question.n_visual = from.get<int64_t>();
        reader::require(question.end >= (res.questions.empty() ? 0 : res.questions.back().end) && question.end <= n_pos);
        reader::require(question.n_visual >= 0 && question.n_visual <= n_visual);
        res.questions.push_back(question);
    }
    n_read = size - from.n_left();

    return res;
}

} // namespace pyfastv
