#include "kernels/buffer.h"

#include "kernels/names.h"
#include "kernels/products.h"

#include "ggml-backend-impl.h"
#include "ggml-cpu.h"
#include "traits.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdint>

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

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t type, size_t size) {
    auto * buffer = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size);
    if (buffer) {
        buffer->buft = type;
        if (size > 0) {
            ask_for_huge_pages(ggml_backend_buffer_get_base(buffer), size);
        }
    }
    return buffer;
}

const char * get_name(ggml_backend_buffer_type_t) { return "CPU_PYFASTV"; }

size_t get_alignment(ggml_backend_buffer_type_t) { return ggml_backend_buft_get_alignment(ggml_backend_cpu_buffer_type()); }

// the weights stay as they are: ggml's own products are as good on them
struct weights : ggml::cpu::extra_buffer_type {
    bool supports_op(ggml_backend_dev_t, const ggml_tensor * op) override {
        return pyfastv_has_kernel(op) && !(op->src[1]->buffer && !ggml_backend_buft_is_host(op->src[1]->buffer->buft));
    }

    ggml::cpu::tensor_traits * get_tensor_traits(const ggml_tensor *) override { return nullptr; }
};

} // namespace

ggml_backend_buffer_type_t pyfastv_weights_buffer_type() {
    static weights context;
    static ggml_backend_buffer_type type = {
        /* .iface   = */ { get_name, alloc_buffer, get_alignment, nullptr, nullptr, nullptr },
        /* .device  = */ ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0),
        /* .context = */ &context,
    };
    return pyfastv_kernels_name() ? &type : nullptr;
}
