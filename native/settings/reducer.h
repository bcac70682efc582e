#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pyfastv {

enum class reduce_method { pool, stride, merge, divprune, cdpruner, vidcom2, evs, pllava };

// One reducer and its numbers; what a method does not use stays as it is here.
struct reducer {
    reduce_method method;

    double  keep     = 0;     // all but evs and pllava: outputs of a picture, as a count (integral, at least 1) or a share
                              // of its tokens, 0 < keep < 1; pool: 0: by window
    double  drop     = 0;     // evs: share of a video's tokens that go, 0 <= drop < 1
    int32_t window   = 2;     // pool, pllava: side of a window in patches, at least 1
    int32_t frames   = 4;     // pllava: frames that are left, at least 1
    bool    scale    = false; // merge: a merged token is multiplied by 1 + log(tokens in it)
    bool    renumber = false; // outputs at consecutive positions instead of their places: for comparison only

    // all slices of a picture together; else slice by slice
    bool joint() const { return method != reduce_method::pool; }

    // the outputs depend on the question
    bool asks() const { return method == reduce_method::cdpruner; }
};

// A reducer from text: its name, then fields separated by ",":
//     pool,window=2 | pool,keep=144    stride,keep=144    merge,keep=288[,scale]    divprune,keep=0.5    cdpruner,keep=144
//     vidcom2,keep=0.25    evs,drop=0.7    pllava,frames=4,window=2
// and for all of them "renumber". "off" is the caller's business. Throws std::invalid_argument that names what is wrong, the value and the choices.
reducer parse_reducer(const std::string & text);

const char * name_of(reduce_method method);

// the keys that a method's text can have, but renumber
const std::vector<std::string> & keys_of(reduce_method method);

// in full, for parse_reducer() to read again
std::string to_text(const reducer & how);

// How many of n tokens stay: `keep` as in reducer. Round-half-even of a share, at least 1, at most n.
size_t count_of(double keep, size_t n);

} // namespace pyfastv
