#pragma once

#include "choose/choose.h"
#include "choose/ledger.h"

#include "ggml-backend.h"

#include <cstdint>
#include <memory>
#include <vector>

namespace pyfastv {

struct similarity_matrix {
    std::vector<std::weak_ptr<const float>> rows;  // [m] what was compared
    std::vector<counted_floats>             parts; // of m tokens, parts_of(m) (choose/parts.h): [n, n] cosines of each

    // was it made of these?
    bool is_of(const std::vector<std::shared_ptr<const float>> & others) const;

    std::vector<similar_part> view() const;
};

// Cosines of rows of n_embd numbers, the mean of all of them subtracted: without that all rows of a model are alike. Each
// row is owned by a pointer of its own. `backend`: a CPU that computes the matrix products. `of`: who counts the cosines.
// Throws std::bad_alloc, aborted.
similarity_matrix similarities(const std::vector<std::shared_ptr<const float>> & rows, int64_t n_embd, ggml_backend_t backend,
        const ledger_ptr & of);

} // namespace pyfastv
