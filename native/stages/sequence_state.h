#pragma once

#include "pyfastv.h"

#include "stages/sequence.h"

#include "llama/interfaces.h"

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

// How a sequence is written into a saved state, and read from one. What is read is data from outside.
namespace pyfastv {

template <typename T>
void write(llama_io_write_i & io, const T & value) {
    static_assert(std::is_trivially_copyable_v<T>);
    io.write(&value, sizeof(value));
}

template <typename T>
T read(llama_io_read_i & io) {
    static_assert(std::is_trivially_copyable_v<T>);
    T value;
    io.read(&value, sizeof(value));
    return value;
}

template <typename T, typename A, typename F>
void write_all(llama_io_write_i & io, const std::vector<T, A> & values, F && write_one) {
    write(io, (uint32_t) values.size());
    for (const auto & value : values) {
        write_one(value);
    }
}

// A count is a claim: memory is taken as the entries come.
template <typename T, typename F, typename A = std::allocator<T>>
std::vector<T, A> read_all(llama_io_read_i & io, F && read_one, const A & allocator = {}) {
    constexpr uint32_t most = 1u << 24;

    const auto n = read<uint32_t>(io);
    if (n > most) {
        throw std::runtime_error("this state is broken: it claims " + std::to_string(n) + " entries of a list");
    }
    std::vector<T, A> res(allocator);
    for (uint32_t i = 0; i < n; ++i) {
        res.push_back(read_one());
    }
    return res;
}

void write_schedule(llama_io_write_i & io, const pyfastv_params & schedule);

// As it was written: that it can be run is checked by who runs it. n_cells: of the context, whatever the state's had. Throws
// std::runtime_error: more cuts than there can be.
pyfastv_params read_schedule(llama_io_read_i & io, int32_t n_cells);

void write_sequence(llama_io_write_i & io, const sequence & seq, const row_width & width);

// Throws std::runtime_error if something in it leads outside of it. n_ubatches: numbers that were given to ubatches; those of
// the state get numbers of their own. archive: who counts its rows and scores.
sequence read_sequence(llama_io_read_i & io, const row_width & width, int32_t n_stages, int32_t & n_ubatches, const ledger_ptr & archive);

} // namespace pyfastv
