// engine: what there is to know of a request

#include "runner/engine.h"

#include "runner/errors.h"
#include "runner/status.h"

#include <algorithm>
#include <numeric>
#include <string>

namespace pyfastv {

run_report engine::report(const slot & s) const {
    auto res = s.counts;

    const auto stages = report_of(ctx.get());

    res.graphs_reused = llama_perf_context(ctx.get()).n_reused - s.n_reused_before;

    // all layers see all of it, whatever stages there are for others
    const auto sum = [&](const size_t * of_stages) { return std::accumulate(of_stages, of_stages + stages.n_stages, (size_t) 0); };
    if (s.schedule.off() && stages.n_stages > 0) {
        res.first_layers           = { 0 };
        res.visual_tokens_in_stage = { res.visual_tokens };
        res.kv_bytes_used          = { sum(stages.kv_bytes_used) };
        res.kv_bytes_allocated     = { sum(stages.kv_bytes) };
    }
    for (int32_t i = 0; i < stages.n_stages && !s.schedule.off(); ++i) {
        res.first_layers.push_back(stages.first_layer[i]);
        res.visual_tokens_in_stage.push_back(i == 0 ? res.visual_tokens : (int64_t) pyfastv_get_kept(ctx.get(), s.seq_id, i - 1, nullptr, 0));
        res.kv_bytes_used.push_back(stages.kv_bytes_used[i]);
        res.kv_bytes_allocated.push_back(stages.kv_bytes[i]);
    }
    res.kv_bytes_used_stock      = stages.kv_bytes_used_stock;
    res.kv_bytes_allocated_stock = stages.kv_bytes_stock;
    res.archive_bytes            = stages.archive_bytes + stages.similarity_bytes;
    res.checkpoint_bytes         = checkpoints.bytes();

    return res;
}

std::vector<int32_t> engine::kept(const slot & s, int32_t cut) const {
    std::vector<int32_t> res(pyfastv_get_kept(ctx.get(), s.seq_id, cut, nullptr, 0));
    pyfastv_get_kept(ctx.get(), s.seq_id, cut, res.data(), res.size());
    return res;
}

std::vector<int32_t> engine::entered(const slot & s) const {
    std::vector<int32_t> res;
    for (int32_t cut = 0; cut < s.schedule.n_cuts(); ++cut) {
        for (const auto token : kept(s, cut)) {
            res.resize(std::max(res.size(), (size_t) token + 1), 0);
            res[token] = cut + 1;
        }
    }
    return res;
}

//
// by its number
//

run_report engine::report(int64_t id) const {
    const turn mine(*this);
    const auto it = lately_ended.find(id);

    return it == lately_ended.end() ? report(at(id)) : it->second.report;
}

int32_t engine::check_cut(const slot & s, int32_t cut) const {
    const int32_t n_cuts = s.schedule.n_cuts();
    if (cut < -n_cuts || cut >= n_cuts) {
        throw error(error_kind::option, "cut " + std::to_string(cut) + " is out of range: there are " + std::to_string(n_cuts));
    }
    return cut < 0 ? cut + n_cuts : cut;
}

std::vector<int32_t> engine::kept(int64_t id, int32_t cut) const {
    const turn mine(*this);
    return kept(at(id), check_cut(at(id), cut));
}

std::vector<float> engine::scores(int64_t id, int32_t cut) const {
    const turn    mine(*this);
    const int32_t seq_id = at(id).seq_id;

    cut = check_cut(at(id), cut);
    std::vector<float> res(pyfastv_get_scores(ctx.get(), seq_id, cut, nullptr, 0));
    pyfastv_get_scores(ctx.get(), seq_id, cut, res.data(), res.size());
    return res;
}

std::vector<pyfastv_grid> engine::grids(int64_t id) const {
    const turn mine(*this);
    return grids(at(id));
}

std::vector<pyfastv_grid> engine::grids(const slot & s) const {
    std::vector<pyfastv_grid> res(pyfastv_get_grids(ctx.get(), s.seq_id, nullptr, 0));
    pyfastv_get_grids(ctx.get(), s.seq_id, res.data(), res.size());
    return res;
}

std::vector<int32_t> engine::places(int64_t id) const {
    const turn mine(*this);

    std::vector<int32_t> res;
    for (const auto & piece : at(id).evaluated) {
        if (piece.visual()) {
            const auto places = places_of(piece);
            res.insert(res.end(), places.begin(), places.end());
        }
    }
    return res;
}

} // namespace pyfastv
