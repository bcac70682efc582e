#include "runner/forks.h"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <mutex>

namespace pyfastv {
namespace {

std::atomic<int> generation { 0 };

// omp.h's, of whichever OpenMP ggml was built with
using pause_fn = int (*)(int kind);

constexpr int pause_soft = 1; // omp_pause_soft: threads go, settings stay

pause_fn pause_openmp = nullptr;

void before_fork() {
    if (pause_openmp) {
        pause_openmp(pause_soft); // refuses within a parallel region
    }
}

void in_child() {
    ++generation;
}

void watch_forks() {
    static std::once_flag once;
    std::call_once(once, [] {
        pause_openmp = reinterpret_cast<pause_fn>(dlsym(RTLD_DEFAULT, "omp_pause_resource_all"));
        pthread_atfork(before_fork, nullptr, in_child);
    });
}

} // namespace

inheritable::inheritable() {
    watch_forks();
    generation = pyfastv::generation;
}

bool inheritable::inherited() const {
    return generation != pyfastv::generation;
}

int n_forks() {
    watch_forks();
    return generation;
}

} // namespace pyfastv
