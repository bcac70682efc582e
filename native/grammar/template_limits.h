#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

// What llama.cpp's template engine and its parsers of answers may spend. A chat template is a program that comes with a model
// file, and an answer is what a model wants it to be: neither may take long, or all of the memory or the stack. Patch 0008 calls
// these functions wherever the engine goes on; without a budget they do nothing.

namespace pyfastv {

struct template_limit : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Lives on one thread, and counts what that thread spends. Once a limit was reached, every further step throws: the engine's
// callers take an exception for an answer, and try again.
class template_budget {
public:
    enum class kind {
        rendering, // of a template, many times
        parsing,   // of an answer
    };

    explicit template_budget(kind kind);
    ~template_budget();

    template_budget(const template_budget &) = delete;

    // The limit that was reached; null: none.
    const char * spent() const { return reached; }

private:
    friend void template_step(size_t);
    friend void template_block(size_t);
    friend class template_level;

    [[noreturn]] void stop(const char * limit);

    template_budget * outer;
    const int         most_levels;
    const int64_t     begin_ns; // of this thread's processor time
    size_t            steps      = 0;
    size_t            next_clock = 0;
    int               levels     = 0;
    const char *      reached    = nullptr;
};

// Each of these throws template_limit.

// n small pieces of work
void template_step(size_t n = 1);

// text that is copied
void template_bytes(size_t n);

// tokens so far in one block of a template ({{ }} or {% %})
void template_block(size_t n_tokens);

// a number of spaces for an indentation
int64_t template_width(int64_t width);

// While one is alive, its caller is one call deeper; and that is a step.
class template_level {
public:
    template_level();
    ~template_level();

    template_level(const template_level &) = delete;

private:
    template_budget * const budget;
};

// Lets go of what a value holds, one after the other: values that hold one another in a long chain would else be freed in calls
// as deep as the chain is long.
template <typename T>
void release_in_turn(std::vector<std::shared_ptr<T>> & array, std::vector<std::pair<std::shared_ptr<T>, std::shared_ptr<T>>> & object) {
    static thread_local std::vector<std::shared_ptr<T>> * waiting = nullptr;

    if (array.empty() && object.empty()) {
        return;
    }
    std::vector<std::shared_ptr<T>> own;

    const bool is_first = !waiting;
    if (is_first) {
        waiting = &own;
    }
    for (auto & value : array) {
        waiting->push_back(std::move(value));
    }
    for (auto & [key, value] : object) {
        waiting->push_back(std::move(key));
        waiting->push_back(std::move(value));
    }
    if (is_first) {
        while (!own.empty()) {
            const auto value = std::move(own.back());
            own.pop_back();
        }
        waiting = nullptr;
    }
}

} // namespace pyfastv
