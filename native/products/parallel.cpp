#include "products/parallel.h"

#include "products/graph.h"

#include <atomic>
#include <exception>
#include <memory>
#include <thread>
#include <utility>

namespace pyfastv {
namespace {

struct work {
    const size_t                         n;
    const std::function<void(size_t)> & f;

    std::atomic<size_t> next   = 0;
    std::atomic<bool>   failed = false;
    std::exception_ptr  failure; // of the first that failed

    // called by ggml, which is C
    void run() noexcept {
        for (size_t i; !failed && (i = next++) < n; ) {
            try {
                f(i);
            } catch (...) {
                if (!failed.exchange(true)) {
                    failure = std::current_exception();
                }
            }
        }
    }
};

void run_work(ggml_tensor * /*dst*/, int /*ith*/, int /*nth*/, void * data) {
    static_cast<work *>(data)->run();
}

} // namespace

stop_fn for_threads(stop_fn ask) {
    if (!ask) {
        return {};
    }
    const auto said = std::make_shared<std::atomic<bool>>(false);
    const auto me   = std::this_thread::get_id();

    return [ask = std::move(ask), said, me] {
        if (std::this_thread::get_id() == me && ask()) {
            *said = true;
        }
        return said->load();
    };
}

void in_parallel(size_t n, ggml_backend_t backend, const std::function<void(size_t)> & f) {
    if (n < 2) {
        for (size_t i = 0; i < n; ++i) {
            f(i);
        }
        return;
    }

    work todo = { n, f };

    products graph(1);
    graph.add(ggml_custom_4d(graph.context(), GGML_TYPE_F32, 1, 1, 1, 1, nullptr, 0, run_work, GGML_N_TASKS_MAX, &todo));
    graph.allocate(backend);
    graph.compute(backend);

    if (todo.failure) {
        std::rethrow_exception(todo.failure);
    }
}

} // namespace pyfastv
