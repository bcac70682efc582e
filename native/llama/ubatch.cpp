#include "llama/ubatch.h"

#include "llama-cparams.h"

#include <memory>

namespace pyfastv {

llama_ubatch make_ubatch(const std::vector<ubatch_row> & rows, uint32_t n_pos, const row_width & width, bool equal_seqs) {
    const auto n    = (uint32_t) rows.size();
    auto       data = std::make_shared<llama_ubatch::data_t>();

    data->pos.resize(n*n_pos);
    data->output.resize(n);
    data->embd.reserve(n*(width.n_embd + width.n_per_layer));
    data->n_seq_id.assign(n, 1);
    data->seq_id_data.resize(n);
    data->seq_idx.assign(LLAMA_MAX_SEQ, -1);

    for (uint32_t i = 0; i < n; ++i) {
        const auto & row = rows[i];

        for (uint32_t j = 0; j < n_pos; ++j) {
            data->pos[j*n + i] = row.pos[j];
        }
        data->output[i] = row.output;
        data->embd.insert(data->embd.end(), row.hidden, row.hidden + width.n_embd);
        data->seq_id_data[i] = row.seq_id;
        data->seq_id.push_back(&data->seq_id_data[i]);
        data->batch_idxs.push_back((int32_t) i);

        if (data->seq_idx[row.seq_id] < 0) {
            data->seq_idx[row.seq_id] = (int32_t) data->seq_id_unq.size();
            data->seq_id_unq.push_back(row.seq_id);
        }
    }

    for (uint32_t i = 0; width.n_per_layer > 0 && i < n; ++i) {
        data->embd.insert(data->embd.end(), rows[i].per_layer, rows[i].per_layer + width.n_per_layer);
    }

    return {
        /*.b_equal_seqs =*/ equal_seqs,
        /*.n_tokens     =*/ n,
        /*.n_seq_tokens =*/ equal_seqs ? n : 1,
        /*.n_seqs       =*/ equal_seqs ? 1 : n,
        /*.n_seqs_unq   =*/ (uint32_t) data->seq_id_unq.size(),
        /*.n_pos        =*/ n_pos,
        /*.token        =*/ nullptr,
        /*.embd         =*/ data->embd.data(),
        /*.pos          =*/ data->pos.data(),
        /*.n_seq_id     =*/ data->n_seq_id.data(),
        /*.seq_id       =*/ data->seq_id.data(),
        /*.seq_id_unq   =*/ data->seq_id_unq.data(),
        /*.seq_idx      =*/ data->seq_idx.data(),
        /*.output       =*/ data->output.data(),
        /*.data         =*/ data,
    };
}

const float * per_layer_of(const llama_ubatch & ubatch, int64_t n_embd) { return ubatch.embd + n_embd*ubatch.n_tokens; }

int32_t batch_index(const llama_ubatch & ubatch, uint32_t i) { return ubatch.data->batch_idxs[i]; }

} // namespace pyfastv
