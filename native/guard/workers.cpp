#include "guard/workers.h"

#include "guard/team.h"
#include "runner/errors.h"

#include <condition_variable>
#include <mutex>
#include <new>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

namespace pyfastv {

// Can so many threads exist beside this one? Their stacks stay in the C library's cache for those that are started next.
static bool can_start(int32_t n) {
    std::mutex               mutex;
    std::condition_variable  done;
    bool                     may_end = false;
    std::vector<std::thread> threads;
    threads.reserve(n);

    bool res = true;
    try {
        for (int32_t i = 0; i < n; ++i) {
            threads.emplace_back([&] {
                std::unique_lock<std::mutex> lock(mutex);
                done.wait(lock, [&] { return may_end; });
            });
        }
    } catch (const std::system_error &) {
        res = false;
    } catch (const std::bad_alloc &) {
        res = false;
    }
    {
        const std::lock_guard<std::mutex> lock(mutex);
        may_end = true;
    }
    done.notify_all();
    for (auto & thread : threads) {
        thread.join();
    }
    return res;
}

void start_workers(int32_t n_threads) {
    static thread_local int32_t n_started = 1;
    if (n_threads <= n_started) {
        return;
    }
    // beside the stacks, OpenMP takes a little memory, and a lack of that ends the process, too
    if (const std::vector<char> little(1 << 20); !can_start(n_threads - 1)) {
        throw error(error_kind::out_of_memory, "the system does not let " + std::to_string(n_threads) +
                " threads compute together: a limit on memory or on threads is reached; use fewer n_threads");
    }
    pyfastv_team_start(n_threads);
    n_started = n_threads;
}

} // namespace pyfastv
