#include "kernels/choice.h"

#include "kernels/names.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace pyfastv::kernels {
namespace {

// all that this CPU runs, the fastest first
std::vector<const cpu_kernels *> find_kernels() {
    std::vector<const cpu_kernels *> res;
#ifdef PYFASTV_X86_KERNELS
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) {
        return res;
    }
    if (__builtin_cpu_supports("avx512f")  && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni")) {
        res.push_back(&avx512_kernels());
    }
    if (__builtin_cpu_supports("avxvnni")) {
        res.push_back(&avxvnni_kernels());
    }
    res.push_back(&avx2_kernels());
#endif
    return res;
}

const std::vector<const cpu_kernels *> & all_kernels() {
    static const auto res = find_kernels();
    return res;
}

const cpu_kernels * choose_kernels() {
    const char * wanted = getenv("PYFASTV_KERNELS");
    const bool   any    = !wanted || !*wanted || !strcmp(wanted, "auto");
    for (const auto * kernels : all_kernels()) {
        if (any || !strcmp(wanted, kernels->name)) {
            return kernels;
        }
    }
    if (!any && strcmp(wanted, "stock")) {
        fprintf(stderr, "PYFASTV_KERNELS=%s: there are no such kernels on this CPU; llama.cpp's own run (known: auto, avx512, avxvnni, avx2, stock)\n", wanted);
    }
    return nullptr;
}

} // namespace

const cpu_kernels * chosen_kernels() {
    static const auto * res = choose_kernels();
    return res;
}

} // namespace pyfastv::kernels

using namespace pyfastv::kernels;

const char * pyfastv_kernels_name() {
    const auto * kernels = chosen_kernels();
    return kernels ? kernels->name : nullptr;
}

const char * pyfastv_kernels_at(int i) {
    const auto & all = all_kernels();
    return (size_t) i < all.size() ? all[i]->name : nullptr;
}
