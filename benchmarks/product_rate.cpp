// The process of products.py, on the libraries of one folder. Reads lines
//     TYPE ROWS COLUMNS OUTPUTS EXPERTS USED BUFFERS THREADS WORK
// (EXPERTS: 0: ordinary products; else every row is multiplied with USED of so many matrices; BUFFERS: CPU, CPU_REPACK, ...:
// where the weights lie) and answers each with giga-operations a second (best of three), or with "-" where the type has no such form. As many
// matrices are multiplied, each another, as make WORK giga-operations: those of few rows do not stay in the caches.
// "peak THREADS" answers with those of the products of bytes in registers.

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "ggml.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#ifdef __x86_64__
#include <immintrin.h>
#endif

static double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

#ifdef __x86_64__

constexpr int64_t peak_rounds = 20'000'000;

// twelve sums hide the latency; they differ, and are used, so that a compiler makes all of them
__attribute__((target("avx512f,avx512bw,avx512vnni"))) static int peak_avx512() {
    __m512i sums[12], x = _mm512_set1_epi8(3), y = _mm512_set1_epi8(2);
    for (int i = 0; i < 12; ++i) {
        sums[i] = _mm512_set1_epi32(i);
    }
    for (int64_t i = 0; i < peak_rounds; ++i) {
#pragma GCC unroll 12
        for (auto & sum : sums) {
            sum = _mm512_dpbusd_epi32(sum, x, y);
        }
    }
    int res = 0;
    for (auto & sum : sums) {
        res += _mm512_reduce_add_epi32(sum);
    }
    return res;
}

__attribute__((target("avx2"))) static int peak_avx2() {
    __m256i sums[12], x = _mm256_set1_epi8(3), y = _mm256_set1_epi8(2);
    for (int i = 0; i < 12; ++i) {
        sums[i] = _mm256_set1_epi32(i);
    }
    for (int64_t i = 0; i < peak_rounds; ++i) {
#pragma GCC unroll 12
        for (auto & sum : sums) {
            sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(x, y));
        }
    }
    int res = 0;
    for (auto & sum : sums) {
        res += _mm256_extract_epi16(sum, 0);
    }
    return res;
}

static double peak(int n_threads) {
    const bool avx512 = __builtin_cpu_supports("avx512vnni");

    std::vector<std::thread> threads;
    std::vector<int>         sums(n_threads);

    const double begin = seconds();
    for (int i = 0; i < n_threads; ++i) {
        threads.emplace_back([&, i] { sums[i] = avx512 ? peak_avx512() : peak_avx2(); });
    }
    for (auto & thread : threads) {
        thread.join();
    }
    const double per_round = 12.0*(avx512 ? 64 : 32)*2;
    return n_threads*peak_rounds*per_round/(seconds() - begin)/1e9;
}

#else
static double peak(int) { return NAN; }
#endif

// blocks of random numbers, the same for all matrices, made once
static const std::vector<uint8_t> & random_weights(ggml_type type, int64_t n_columns, int64_t n_outputs, int64_t n_matrices) {
    static std::vector<uint8_t> bytes;
    static std::vector<int64_t> have;

    const std::vector<int64_t> wanted = { type, n_columns, n_outputs, n_matrices };
    if (have != wanted) {
        std::mt19937 random(1);
        std::normal_distribution<float> normal;

        std::vector<float> values(n_columns*n_outputs);
        std::generate(values.begin(), values.end(), [&] { return normal(random); });

        const size_t size = ggml_row_size(type, n_columns)*n_outputs;
        bytes.resize(size*n_matrices);
        ggml_quantize_chunk(type, values.data(), bytes.data(), 0, n_outputs, n_columns, nullptr);
        for (int64_t i = 1; i < n_matrices; ++i) {
            std::copy_n(bytes.begin(), size, bytes.begin() + i*size);
        }
        have = wanted;
    }
    return bytes;
}

static ggml_type find_type(const std::string & name) {
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        if (ggml_type_name((ggml_type) i) && name == ggml_type_name((ggml_type) i)) {
            return (ggml_type) i;
        }
    }
    fprintf(stderr, "\"%s\" is not a type of weights\n", name.c_str());
    exit(1);
}

// for every row: different ones
static std::vector<int32_t> random_experts(int64_t n_rows, int64_t n_experts, int64_t n_used) {
    static std::mt19937 random(3);

    std::vector<int32_t> all(n_experts), res;
    std::iota(all.begin(), all.end(), 0);
    for (int64_t i = 0; i < n_rows; ++i) {
        std::shuffle(all.begin(), all.end(), random);
        res.insert(res.end(), all.begin(), all.begin() + n_used);
    }
    return res;
}

// 0: there is no such form
static double rate(ggml_type type, int64_t n_rows, int64_t n_columns, int64_t n_outputs, int64_t n_experts, int64_t n_used,
                   const std::string & buffers, int n_threads, double work) {
    const auto device  = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    const auto backend = ggml_backend_ptr(ggml_backend_dev_init(device, nullptr));
    ggml_backend_cpu_set_n_threads(backend.get(), n_threads);

    auto * place = ggml_backend_cpu_buffer_type();
    if (buffers != ggml_backend_buft_name(place)) {
        const auto get = (ggml_backend_dev_get_extra_bufts_t)
            ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts");
        auto * extra = get ? get(device) : nullptr;
        while (extra && *extra && buffers != ggml_backend_buft_name(*extra)) {
            ++extra;
        }
        if (!extra || !*extra) {
            return 0;
        }
        place = *extra;
    }
    const double operations = 2.0*n_rows*n_columns*n_outputs*(n_experts ? n_used : 1);
    const int    n          = std::max(1, (int) std::round(work*1e9/operations));
    const int    n_weights  = n_experts ? std::max<int64_t>(1, n*n_used/n_experts) : n;

    const ggml_init_params params = { (n*3 + 8)*ggml_tensor_overhead() + ggml_graph_overhead_custom(n + 8, false), nullptr, true };
    const ggml_context_ptr of_weights(ggml_init(params)), of_rows(ggml_init(params));

    std::vector<ggml_tensor *> weights, ids;
    for (int i = 0; i < n_weights; ++i) {
        weights.push_back(ggml_new_tensor_3d(of_weights.get(), type, n_columns, n_outputs, std::max<int64_t>(1, n_experts)));
    }
    auto * graph = ggml_new_graph_custom(of_rows.get(), n + 8, false);
    auto * rows  = ggml_new_tensor_3d(of_rows.get(), GGML_TYPE_F32, n_columns, n_experts ? 1 : n_rows, n_experts ? n_rows : 1);
    for (int i = 0; i < n; ++i) {
        auto * w = weights[i % n_weights];
        if (n_experts) {
            ids.push_back(ggml_new_tensor_2d(of_rows.get(), GGML_TYPE_I32, n_used, n_rows));
        }
        ggml_build_forward_expand(graph, n_experts ? ggml_mul_mat_id(of_rows.get(), w, rows, ids.back()) : ggml_mul_mat(of_rows.get(), w, rows));
    }

    const ggml_backend_buffer_ptr memory(ggml_backend_alloc_ctx_tensors_from_buft(of_weights.get(), place));
    ggml_backend_buffer_set_usage(memory.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    if (!ggml_backend_dev_supports_op(device, ggml_graph_node(graph, 0))) {
        return 0;
    }
    const auto & bytes = random_weights(type, n_columns, n_outputs, std::max<int64_t>(1, n_experts));
    for (auto * w : weights) {
        ggml_backend_tensor_set(w, bytes.data(), 0, bytes.size());
    }

    const ggml_backend_buffer_ptr rest(ggml_backend_alloc_ctx_tensors(of_rows.get(), backend.get()));
    std::vector<float> values(n_rows*n_columns);
    std::mt19937 random(2);
    std::generate(values.begin(), values.end(), [&] { return std::normal_distribution<float>()(random); });
    ggml_backend_tensor_set(rows, values.data(), 0, ggml_nbytes(rows));
    for (auto * t : ids) {
        ggml_backend_tensor_set(t, random_experts(n_rows, n_experts, n_used).data(), 0, ggml_nbytes(t));
    }

    double best = INFINITY;
    for (int i = 0; i < 4; ++i) {
        const double begin = seconds();
        ggml_backend_graph_compute(backend.get(), graph);
        best = std::min(best, i == 0 ? INFINITY : seconds() - begin);
    }
    return operations*n/best/1e9;
}

int main() {
    ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr);

    for (std::string type; std::cin >> type; ) {
        double  work, res;
        int     n_threads;
        int64_t n_rows, n_columns, n_outputs, n_experts, n_used;
        std::string buffers;
        if (type == "peak") {
            std::cin >> n_threads;
            res = peak(n_threads);
        } else {
            std::cin >> n_rows >> n_columns >> n_outputs >> n_experts >> n_used >> buffers >> n_threads >> work;
            res = rate(find_type(type), n_rows, n_columns, n_outputs, n_experts, n_used, buffers, n_threads, work);
        }
        printf(res > 0 ? "%.1f\n" : "-\n", res);
        fflush(stdout);
    }
}
