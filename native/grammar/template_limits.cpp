#include "grammar/template_limits.h"

#include <algorithm>
#include <ctime>

namespace pyfastv {
namespace {

// The largest templates of the hub take a tenth of these for all renderings that tell how they write calls.
constexpr size_t  most_steps    = 2000000;
constexpr int64_t most_ns       = 500000000;
constexpr size_t  bytes_a_step  = 32;
constexpr size_t  most_in_block = 2000;
constexpr int64_t most_width    = 100;

// of calls inside each other, each with up to 2 KB of the stack
constexpr int most_levels_rendering = 400;
constexpr int most_levels_parsing   = 1000;

constexpr size_t steps_a_clock = 1024;

thread_local template_budget * current = nullptr;

// what others do meanwhile does not count
int64_t thread_ns() {
    timespec now = {};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (int64_t) now.tv_sec*1000000000 + now.tv_nsec;
}

} // namespace

template_budget::template_budget(kind kind) :
    outer(current), most_levels(kind == kind::rendering ? most_levels_rendering : most_levels_parsing), begin_ns(thread_ns()) {
    current = this;
}

template_budget::~template_budget() {
    current = outer;
}

void template_budget::stop(const char * limit) {
    if (!reached) {
        reached = limit;
    }
    throw template_limit(reached);
}

void template_step(size_t n) {
    template_budget * budget = current;
    if (!budget) {
        return;
    }
    if (budget->reached) {
        budget->stop(budget->reached);
    }
    budget->steps += std::min(n, most_steps);
    if (budget->steps > most_steps) {
        budget->stop("it takes more than 2 million steps");
    }
    if (budget->steps >= budget->next_clock) {
        budget->next_clock = budget->steps + steps_a_clock;
        if (thread_ns() - budget->begin_ns > most_ns) {
            budget->stop("it takes more than half a second");
        }
    }
}

void template_bytes(size_t n) {
    template_step(1 + n/bytes_a_step);
}

void template_block(size_t n_tokens) {
    if (current && n_tokens > most_in_block) {
        current->stop("a block of it has more than 2000 tokens");
    }
}

int64_t template_width(int64_t width) {
    return current ? std::clamp<int64_t>(width, 0, most_width) : width;
}

template_level::template_level() : budget(current) {
    if (budget) {
        template_step();
        if (budget->levels >= budget->most_levels) {
            budget->stop("it is nested too deeply");
        }
        budget->levels++;
    }
}

template_level::~template_level() {
    if (budget) {
        budget->levels--;
    }
}

} // namespace pyfastv
