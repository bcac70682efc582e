#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

namespace pyfastv {

// How many bytes of one kind a context keeps: what is allocated by an allocator of it says so, and when it goes.
// It may be read from any thread.
class ledger {
public:
    size_t bytes() const { return total.load(std::memory_order_relaxed); }

    void add   (size_t n) { total.fetch_add(n, std::memory_order_relaxed); }
    void remove(size_t n) { total.fetch_sub(n, std::memory_order_relaxed); }

private:
    std::atomic<size_t> total = 0;
};

using ledger_ptr = std::shared_ptr<ledger>;

// std::allocator, with what it gave written in a ledger; without one it is not counted. Copies and moves of a container
// stay in the ledger of what they were made from.
template <typename T>
struct counting_allocator {
    using value_type = T;

    using propagate_on_container_copy_assignment = std::true_type;
    using propagate_on_container_move_assignment = std::true_type;
    using propagate_on_container_swap            = std::true_type;

    counting_allocator() = default;
    counting_allocator(ledger_ptr of) : of(std::move(of)) {}
    template <typename U> counting_allocator(const counting_allocator<U> & other) : of(other.of) {}

    T * allocate(size_t n) {
        T * res = std::allocator<T>().allocate(n);
        if (of) {
            of->add(n*sizeof(T));
        }
        return res;
    }

    void deallocate(T * p, size_t n) {
        if (of) {
            of->remove(n*sizeof(T));
        }
        std::allocator<T>().deallocate(p, n);
    }

    template <typename U> bool operator==(const counting_allocator<U> & other) const { return of == other.of; }
    template <typename U> bool operator!=(const counting_allocator<U> & other) const { return of != other.of; }

    ledger_ptr of;
};

using counted_floats = std::vector<float, counting_allocator<float>>;

} // namespace pyfastv
