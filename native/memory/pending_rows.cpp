#include "memory/pending_rows.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace pyfastv {

void pending_rows::reserve(size_t n) {
    rows.reserve(rows.size() + n);
    data.reserve(data.size() + n*n_embd);
}

float * pending_rows::append(std::vector<pending_row> added) {
    const size_t at = data.size();

    data.resize(at + added.size()*n_embd);
    std::move(added.begin(), added.end(), std::back_inserter(rows));

    return data.data() + at;
}

void pending_rows::forget_outputs() {
    for (auto & row : rows) {
        row.output = -1;
    }
}

void pending_rows::clear() {
    rows.clear();
    data.clear();
}

void pending_rows::remove(llama_pos p0, llama_pos p1) {
    size_t n = 0;

    for (size_t i = 0; i < rows.size(); ++i) {
        if (rows[i].pos >= p0 && rows[i].pos < p1) {
            continue;
        }
        if (n != i) {
            rows[n] = std::move(rows[i]);
            std::copy_n(data.begin() + i*n_embd, n_embd, data.begin() + n*n_embd);
        }
        n++;
    }

    rows.resize(n);
    data.resize(n*n_embd);
}

void pending_rows::shift(llama_pos p0, llama_pos p1, llama_pos delta) {
    for (auto & row : rows) {
        if (row.pos >= p0 && row.pos < p1) {
            row.pos += delta;
        }
    }
}

void pending_rows::divide(llama_pos p0, llama_pos p1, int d) {
    for (auto & row : rows) {
        if (row.pos >= p0 && row.pos < p1) {
            row.pos /= d;
        }
    }
}

} // namespace pyfastv
