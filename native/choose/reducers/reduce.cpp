#include "choose/reducers/reduce.h"

#include "choose/reducers/methods.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>

namespace pyfastv {

int64_t visual_embeddings::n() const {
    int64_t res = 0;
    for (const auto & slice : slices) {
        res += (int64_t) slice.nx*slice.ny;
    }
    return res;
}

std::vector<size_t> sizes_of(const std::vector<patch_grid> & slices) {
    std::vector<size_t> res;
    for (const auto & slice : slices) {
        res.push_back((size_t) slice.nx*slice.ny);
    }
    return res;
}

size_t slice_of(const std::vector<patch_grid> & slices, int64_t i) {
    size_t s = 0;
    while (i >= (int64_t) slices[s].nx*slices[s].ny) {
        i -= (int64_t) slices[s].nx*slices[s].ny;
        s++;
    }
    return s;
}

std::array<float, 3> centre_of(const std::vector<patch_grid> & slices, int64_t i) {
    const size_t s = slice_of(slices, i);
    for (size_t before = 0; before < s; ++before) {
        i -= (int64_t) slices[before].nx*slices[before].ny;
    }
    return { (float) s, (float) (i/slices[s].nx), (float) (i%slices[s].nx) };
}

std::vector<size_t> share_out(size_t m, const std::vector<double> & want, const std::vector<size_t> & most) {
    const size_t n = want.size();

    std::vector<size_t> res(n, 0);
    std::vector<bool>   full(n, false);

    // what a part cannot take, the others share
    for (size_t left = m; left > 0; ) {
        double sum = 0;
        for (size_t i = 0; i < n; ++i) {
            full[i] = res[i] >= most[i];
            sum    += full[i] ? 0 : want[i];
        }
        if (std::find(full.begin(), full.end(), false) == full.end()) {
            break;
        }

        std::vector<std::pair<double, size_t>> remainders; // negative, so that the largest comes first
        size_t given = 0;
        for (size_t i = 0; i < n; ++i) {
            if (!full[i]) {
                const double part  = sum > 0 ? left*want[i]/sum : 0;
                const size_t whole = std::min((size_t) std::floor(part + 1e-9), most[i] - res[i]);
                remainders.emplace_back(whole - part, i);
                res[i] += whole;
                given  += whole;
            }
        }
        left -= given;
        if (given > 0 && left > remainders.size()) {
            continue;
        }
        std::stable_sort(remainders.begin(), remainders.end());
        for (const auto & [remainder, i] : remainders) {
            if (left > 0 && res[i] < most[i]) {
                res[i]++;
                left--;
            }
        }
    }
    return res;
}

reduced_embeddings take(const visual_embeddings & in, const std::vector<int32_t> & picked) {
    reduced_embeddings res;
    res.place = picked;
    res.member.assign(in.n(), -1);
    res.slices.assign(in.slices.size(), { 0, 1 });
    res.values.resize(picked.size()*in.d);

    for (size_t o = 0; o < picked.size(); ++o) {
        res.member[picked[o]] = (int32_t) o;
        res.centre.push_back(centre_of(in.slices, picked[o]));
        res.slices[(size_t) res.centre.back()[0]].nx++;
        std::copy_n(in.values + picked[o]*in.d, in.d, res.values.data() + o*in.d);
    }
    return res;
}

static void require_one_size(const std::vector<patch_grid> & slices, const char * name) {
    for (const auto & slice : slices) {
        if (slice.nx != slices[0].nx || slice.ny != slices[0].ny) {
            throw std::invalid_argument(std::string(name) + " compares frames of one size, but there are slices of " +
                    std::to_string(slices[0].nx) + " x " + std::to_string(slices[0].ny) + " and of " + std::to_string(slice.nx) +
                    " x " + std::to_string(slice.ny) + " tokens: use divprune, merge or stride for pictures that are cut into parts");
        }
    }
}

static void check(const reducer & how, const std::vector<patch_grid> & slices) {
    if (slices.empty()) {
        throw std::invalid_argument("there is nothing to reduce");
    }
    if (how.method == reduce_method::evs || how.method == reduce_method::pllava) {
        require_one_size(slices, how.method == reduce_method::evs ? "evs" : "pllava");
    }
}

ggml_backend_ptr make_cpu_backend(int32_t n_threads, const stop_fn * stopped) {
    ggml_backend_ptr res(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
    if (!res) {
        throw std::bad_alloc();
    }
    auto * reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(res.get()));
    const auto set_n_threads = (ggml_backend_set_n_threads_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads");
    if (set_n_threads) {
        set_n_threads(res.get(), n_threads);
    }
    const auto set_abort = (ggml_backend_set_abort_callback_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_abort_callback");
    if (set_abort && stopped) {
        set_abort(res.get(), [](void * data) { return (*static_cast<const stop_fn *>(data))(); }, const_cast<stop_fn *>(stopped));
    }
    return res;
}

size_t count_reduced(const reducer & how, const std::vector<patch_grid> & slices) {
    check(how, slices);

    const auto   sizes = sizes_of(slices);
    const size_t n     = std::accumulate(sizes.begin(), sizes.end(), (size_t) 0);

    switch (how.method) {
        case reduce_method::pool: {
            size_t res = 0;
            for (const auto & windows : pool_windows(how, slices)) {
                res += (size_t) windows.nx*windows.ny;
            }
            return res;
        }
        case reduce_method::pllava: {
            const auto windows = windows_of_side(slices[0], how.window);
            return std::min((size_t) how.frames, slices.size())*windows.nx*windows.ny;
        }
        case reduce_method::evs:
            return count_evs(slices, how.drop);
        default:
            return count_of(how.keep, n);
    }
}

reduced_embeddings reduce(const reducer & how, const visual_embeddings & in, ggml_backend_t backend, const stop_fn & stopped) {
    check(how, in.slices);

    const int64_t n = in.n();
    const size_t  m = count_reduced(how, in.slices);

    if (how.asks() && (!in.question || in.n_question < 1 || in.n_question > in.d)) {
        throw std::invalid_argument("cdpruner needs the embedding of a question, of at most " + std::to_string(in.d) + " numbers");
    }

    switch (how.method) {
        case reduce_method::pool:     return pool(in, pool_windows(how, in.slices));
        case reduce_method::pllava:   return pool_frames(in, how.frames, how.window);
        case reduce_method::merge:    return merge(in, m, how.scale, backend, stopped);
        case reduce_method::stride:   return take(in, pick_stride(n, m));
        case reduce_method::divprune: return take(in, pick_divprune(in, m, backend, stopped));
        case reduce_method::cdpruner: return take(in, pick_cdpruner(in, m, backend, stopped));
        case reduce_method::vidcom2:  return take(in, pick_vidcom2(in, m));
        case reduce_method::evs:      return take(in, pick_evs(in, how.drop));
    }
    throw std::invalid_argument("no such reducer");
}

} // namespace pyfastv
