#pragma once

#include "pyfastv.h"

#include "choose/choose.h"
#include "stages/sequence.h"

#include "ggml-backend.h"

#include <cstdint>
#include <vector>

namespace pyfastv {

// The rows of one sequence on their way through the later stages. The sequence itself changes when all of it is done.
struct flow {
    llama_seq_id           seq_id;
    const sequence *       seq;
    pyfastv_params         schedule;
    std::vector<staged_row> rows; // at the current cut, recalled ones first, then in prompt order

    // as they will be in the sequence
    std::vector<picture>            pictures;
    std::vector<visual_token>       tokens;
    std::vector<std::vector<float>> scores;
    std::vector<turn::recall>       recalled;

    int32_t n_kept = 0; // visual tokens that entered the stage behind the cut for the first time

    flow(llama_seq_id seq_id, const sequence & seq, const pyfastv_params & schedule);

    // the rule of a cut
    const pyfastv_cut & rule(int32_t cut) const { return schedule.cuts[cut]; }

    // with nothing dropped, all rows enter
    bool drops() const;

    // what choosing works with
    struct tools {
        int64_t        n_embd;       // width of a row
        ggml_backend_t backend;      // a CPU
        ledger_ptr     archive;      // who counts rows
        ledger_ptr     similarities; // and cosines
        stop_fn        stopped = {}; // by several threads; then aborted is thrown (products/products.h)
    };

    // Makes the choice at a cut: `rows` become those that enter the stage behind it. recalls: the question may bring tokens back
    void choose(int32_t cut, bool recalls, const tools & with);

    // index of the first row whose scores the choice at a cut reads; it reads those of all behind
    size_t first_read(int32_t cut) const;

private:
    // rows.size(): none votes, and the last row decides
    size_t first_voter(const pyfastv_cut & rule) const;

    std::vector<float> token_scores(const pyfastv_cut & rule) const;

    // of the rows at a cut of some tokens of a picture: what it has, or computed now and kept there
    std::vector<similar_part> similarity_of(picture & picture, int32_t cut, const std::vector<int32_t> & here, const tools & with) const;

    // all tokens of a picture, with what they scored
    picture_scores scores_of(const picture & picture, int32_t cut, const std::vector<float> & of_tokens) const;

    // averages the new rows that do not enter into those that do
    void merge(const std::vector<uint8_t> & is_new, const std::vector<uint8_t> & enters, const tools & with);

    // `rows` become those that come back and those that enter
    void enter(int32_t cut, const pyfastv_cut & rule, const std::vector<uint8_t> & enters, std::vector<staged_row> back);

    // weighs those that enter behind the cut by those that do not; here: a picture's tokens at the cut, the rows of similarity
    void weigh(int32_t cut, const std::vector<int32_t> & here, const std::vector<similar_part> & similarity, const std::vector<uint8_t> & enters);

    // tokens of the picture that are at the cut and not among `rows`, chosen now: those that come back
    void recall_tokens(const picture & picture, const std::vector<int32_t> & chosen, int32_t cut, const std::vector<uint8_t> & arrives,
            std::vector<staged_row> & back);
};

// how many tokens of a picture of n a question may bring back at a cut: round-half-even of n*recall
size_t recall_budget(size_t n, float recall);

// the patch grids of the slices of a picture, as choose() takes them
std::vector<patch_grid> grids_of(const picture & picture);

// Every dropped row is averaged into the kept one that is nearest by cosine; of equal ones into the first. Of more than
// most_compared rows into the nearest of its part (choose/parts.h), or, if none of that is kept, of all.
// visual: indices into rows, ascending; is_kept: of each of these
void merge_rows(std::vector<staged_row> & rows, const std::vector<size_t> & visual, const std::vector<uint8_t> & is_kept, const flow::tools & with);

} // namespace pyfastv
