#include "kernels/buffer.h"

#include "kernels/choice.h"
#include "kernels/layout.h"
#include "kernels/names.h"
#include "kernels/products.h"

#include "ggml-backend-impl.h"
#include "ggml-cpu.h"
#include "traits.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <future>
#include <system_error>
#include <thread>
#include <vector>

using namespace pyfastv::kernels;

namespace {

// Translating addresses is half the time of reading weights once through in pages of 4 kB, the more so in a virtual machine.
void ask_for_huge_pages(void * begin, size_t size) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t page = 4096;

    const uintptr_t first = ((uintptr_t) begin + page - 1)/page*page, last = ((uintptr_t) begin + size)/page*page;
    if (first < last) {
        madvise((void *) first, last - first, MADV_HUGEPAGE); // a wish: without it, the weights are where they are
    }
#else
    (void) begin;
    (void) size;
#endif
}

// The matrices of a tensor, packed.
struct packed_tensor {
    const cpu_kernels & kernels;
    const ggml_tensor & t;
    layout              rows;

    explicit packed_tensor(const ggml_tensor & t) : kernels(*chosen_kernels()), t(t), rows(t.type, t.ne[0], t.ne[1]) {}

    size_t bytes() const { return t.ne[2]*rows.bytes(); }

    int       rows_of (int64_t i) const { return rows.rows_of(i % rows.n_panels()); }
    uint8_t * panel_at(int64_t i) const { return (uint8_t *) t.data + i*rows.panel_bytes(); }
    // in the file
    size_t    begin_of(int64_t i) const { return (i/rows.n_panels()*rows.n_rows + i % rows.n_panels()*panel_rows)*rows.row_bytes; }
};

// f(i) for every i in [begin, end), by as many threads as `bytes` are worth
template <typename F>
void in_parallel(int64_t begin, int64_t end, size_t bytes, F && f) {
    std::atomic<int64_t> next = begin;
    const auto work = [&] {
        for (int64_t i; (i = next++) < end; ) {
            f(i);
        }
    };
    std::vector<std::future<void>> others;
    try {
        for (size_t i = 1; i < std::min<size_t>(std::thread::hardware_concurrency(), bytes >> 20); ++i) {
            others.push_back(std::async(std::launch::async, work));
        }
    } catch (const std::system_error &) { // fewer, then
    }
    work();
    for (auto & other : others) {
        other.get();
    }
}

// Panel by panel, what [offset, offset + size) of the file has of it. f(i, all, at, from, n): of its `all` bytes n from byte
// `at` on, which are those from byte `from` of the range on.
template <typename F>
void each_panel(const packed_tensor & p, size_t offset, size_t size, F && f) {
    const size_t of_matrix = p.rows.n_rows*p.rows.row_bytes, of_panel = panel_rows*p.rows.row_bytes;
    const auto   panel_of  = [&](size_t byte) { return (int64_t) (byte/of_matrix*p.rows.n_panels() + byte % of_matrix/of_panel); };
    if (size == 0) {
        return;
    }
    in_parallel(panel_of(offset), panel_of(offset + size - 1) + 1, size, [&](int64_t i) {
        const size_t begin = p.begin_of(i), all = p.rows_of(i)*p.rows.row_bytes;
        const size_t first = std::max(begin, offset), last = std::min(begin + all, offset + size);
        f(i, all, first - begin, first - offset, last - first);
    });
}

void set_packed(const packed_tensor & p, const uint8_t * data, size_t offset, size_t size) {
    each_panel(p, offset, size, [&](int64_t i, size_t all, size_t at, size_t from, size_t n) {
        const uint8_t *      rows = data + from;
        std::vector<uint8_t> changed;
        if (n < all) {
            changed.resize(all);
            p.rows.unpack(p.panel_at(i), p.rows_of(i), changed.data());
            memcpy(changed.data() + at, data + from, n);
            rows = changed.data();
        }
        p.rows.pack(p.kernels, rows, p.rows.row_bytes, p.rows_of(i), p.panel_at(i));
    });
}

void get_packed(const packed_tensor & p, uint8_t * data, size_t offset, size_t size) {
    each_panel(p, offset, size, [&](int64_t i, size_t all, size_t at, size_t from, size_t n) {
        std::vector<uint8_t> rows(all);
        p.rows.unpack(p.panel_at(i), p.rows_of(i), rows.data());
        memcpy(data + from, rows.data() + at, n);
    });
}

const ggml_tensor & owner_of(const ggml_tensor & t) { return t.view_src ? *t.view_src : t; }

// of tensors in our buffers
bool is_packable(const ggml_tensor & t) {
    const kernel * k = chosen_kernels()->of(t.type);
    return k && t.ne[3] == 1 && t.ne[0] % k->block == 0 && t.ne[1] >= panel_rows;
}

size_t get_alloc_size(ggml_backend_buffer_type_t, const ggml_tensor * t) {
    return is_packable(*t) ? packed_tensor(*t).bytes() : ggml_nbytes(t);
}

void set_tensor(ggml_backend_buffer_t, ggml_tensor * t, const void * data, size_t offset, size_t size) {
    if (pyfastv_is_packed(t)) {
        set_packed(packed_tensor(owner_of(*t)), (const uint8_t *) data, t->view_offs + offset, size);
    } else {
        memcpy((char *) t->data + offset, data, size);
    }
}

void get_tensor(ggml_backend_buffer_t, const ggml_tensor * t, void * data, size_t offset, size_t size) {
    if (pyfastv_is_packed(t)) {
        get_packed(packed_tensor(owner_of(*t)), (uint8_t *) data, t->view_offs + offset, size);
    } else {
        memcpy(data, (const char *) t->data + offset, size);
    }
}

void memset_tensor(ggml_backend_buffer_t buffer, ggml_tensor * t, uint8_t value, size_t offset, size_t size) {
    set_tensor(buffer, t, std::vector<uint8_t>(size, value).data(), offset, size);
}

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t type, size_t size) {
    auto * buffer = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size);
    if (buffer) {
        buffer->buft = type;

        buffer->iface.set_tensor    = set_tensor;
        buffer->iface.get_tensor    = get_tensor;
        buffer->iface.memset_tensor = memset_tensor;
        buffer->iface.cpy_tensor    = nullptr;
        if (size > 0) {
            ask_for_huge_pages(ggml_backend_buffer_get_base(buffer), size);
        }
    }
    return buffer;
}

const char * get_name(ggml_backend_buffer_type_t) { return "CPU_PYFASTV"; }

size_t get_alignment(ggml_backend_buffer_type_t) { return ggml_backend_buft_get_alignment(ggml_backend_cpu_buffer_type()); }

struct weights : ggml::cpu::extra_buffer_type {
    bool supports_op(ggml_backend_dev_t, const ggml_tensor * op) override {
        return pyfastv_has_kernel(op) && !(op->src[1]->buffer && !ggml_backend_buft_is_host(op->src[1]->buffer->buft));
    }

    // the call sites of products.h are asked first
    ggml::cpu::tensor_traits * get_tensor_traits(const ggml_tensor *) override { return nullptr; }
};

} // namespace

ggml_backend_buffer_type_t pyfastv_weights_buffer_type() {
    static weights context;
    static ggml_backend_buffer_type type = {
        /* .iface   = */ { get_name, alloc_buffer, get_alignment, nullptr, get_alloc_size, nullptr },
        /* .device  = */ ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0),
        /* .context = */ &context,
    };
    return pyfastv_kernels_name() ? &type : nullptr;
}

bool pyfastv_is_packed(const ggml_tensor * t) {
    const auto & of = owner_of(*t);
    return of.buffer && of.buffer->buft == pyfastv_weights_buffer_type() && is_packable(of);
}
