#include "runner/answers.h"

#include "runner/vocab.h"

#include <algorithm>

namespace pyfastv {
namespace {

constexpr const char * space = " \t\r\n";

// How many bytes of the text from `at` on a token stands for. Tokenizers put a space before a text, or leave out those
// behind a special token; libmtmd puts tokens around pictures that the text has not.
size_t n_bytes_of(const std::string & token, const std::string & text, size_t at) {
    const auto begins = [&](size_t from, const std::string & what) { return !what.empty() && text.compare(from, what.size(), what) == 0; };

    if (begins(at, token)) {
        return token.size();
    }
    if (const auto word = token.substr(0, 1) == " " ? token.substr(1) : ""; begins(at, word)) {
        return word.size();
    }
    const size_t behind = std::min(text.find_first_not_of(space, at), text.size());

    return begins(behind, token) ? behind - at + token.size() : 0;
}

} // namespace

std::vector<span> pieces_of(const std::vector<span> & bytes, const std::string & text, const std::string & marker,
        const std::vector<prompt_piece> & pieces, const llama_vocab * vocab) {
    std::vector<size_t> edges; // in bytes
    for (const auto & each : bytes) {
        edges.push_back(each.begin);
        edges.push_back(each.end);
    }
    if (edges.empty() || !std::is_sorted(edges.begin(), edges.end())) {
        return {};
    }
    std::vector<size_t> found; // in pieces, one for each edge

    size_t at = 0; // in the text
    size_t first_picture = pieces.size();

    for (size_t i = 0; i < pieces.size(); ++i) {
        const auto & piece = pieces[i];

        if (!piece.visual()) {
            at += n_bytes_of(piece_of(vocab, piece.token, true), text, at);
        } else {
            first_picture = std::min(first_picture, i);
            // frames of a video have a marker each, slices of a picture one for all
            if (piece.slice == 0 || text.find_first_not_of(space, at) == text.find(marker, at)) {
                for (int32_t frame = 0; frame < piece.n_frames; ++frame) {
                    at = std::min(text.find(marker, at), text.size() - marker.size()) + marker.size();
                }
            }
        }
        while (found.size() < edges.size() && at >= edges[found.size()]) {
            found.push_back(at > edges[found.size()] ? i : i + 1);
        }
    }
    if (found.size() < edges.size() || text.find_first_not_of(space, at) != std::string::npos) {
        return {};
    }

    std::vector<span> res;
    for (size_t i = 0; i < found.size(); i += 2) {
        if (found[i] > first_picture) {
            res.push_back({ found[i], std::max(found[i], found[i + 1]) });
        }
    }
    return res;
}

} // namespace pyfastv
