#include "kernels/attention.h"

#include "kernels/attention_kernel.h"
#include "kernels/choice.h"
#include "kernels/work.h"

#include <algorithm>
#include <cstring>

namespace pyfastv::kernels {
namespace {

// As many as llama.cpp's tiles want: fewer rows go the same way whatever batch they are in. A part of a head can have fewer.
constexpr int64_t least_rows = 64;
constexpr int64_t least_part = 16;

float option(const ggml_tensor & dst, int i) {
    float res;
    memcpy(&res, (const char *) dst.op_params + i*sizeof(float), sizeof(res));
    return res;
}

// null: not ours
attend_function function_of(const ggml_tensor & dst) {
    const auto * kernels = chosen_kernels();
    if (!kernels) {
        return nullptr;
    }
    const auto & q = *dst.src[0], & k = *dst.src[1], & v = *dst.src[2];
    const auto * mask = dst.src[3];

    const float max_bias = option(dst, 1), softcap = option(dst, 2);

    const bool ours = q.ne[1] >= least_rows && q.type == GGML_TYPE_F32 && k.type == v.type && (k.type == GGML_TYPE_F16 || k.type == GGML_TYPE_F32) &&
                      q.nb[0] == sizeof(float) && k.nb[0] == ggml_type_size(k.type) && v.nb[0] == ggml_type_size(v.type) &&
                      max_bias == 0 && softcap == 0 && !dst.src[4] && (!mask || (mask->type == GGML_TYPE_F16 && mask->nb[0] == sizeof(ggml_fp16_t))) &&
                      ggml_is_contiguous(&dst);
    return ours ? kernels->attend : nullptr;
}

size_t work_of_thread(const ggml_tensor & dst) {
    return head_memory(dst.src[1]->ne[0], dst.src[2]->ne[0], nullptr).bytes; // a multiple of 64
}

} // namespace
} // namespace pyfastv::kernels

using namespace pyfastv::kernels;

size_t pyfastv_flash_attn_work_size(int n_threads, const ggml_tensor * dst) {
    return function_of(*dst) ? n_threads*work_of_thread(*dst) + alignment : 0;
}

bool pyfastv_flash_attn(const ggml_compute_params * params, ggml_tensor * dst) {
    const auto attend = params->use_ref ? nullptr : function_of(*dst);
    if (!attend || params->wsize < pyfastv_flash_attn_work_size(params->nth, dst)) {
        return false;
    }
    const auto & q = *dst->src[0], & k = *dst->src[1], & v = *dst->src[2];
    const auto * mask = dst->src[3];

    auto * work = align((char *) params->wdata) + params->ith*work_of_thread(*dst);

    // parts of about the same size, and enough of them that no thread waits long for another
    const int64_t n_heads = q.ne[2]*q.ne[3];
    const int64_t n_parts = std::max((q.ne[1] + head_rows - 1)/head_rows, std::min((4*params->nth + n_heads - 1)/n_heads, q.ne[1]/least_part));

    share(params, n_heads*n_parts, [&](int64_t i) {
        const int64_t i2 = i/n_parts % q.ne[2], i3 = i/n_parts/q.ne[2], part = i % n_parts;
        const int64_t first = q.ne[1]*part/n_parts, last = q.ne[1]*(part + 1)/n_parts;

        const auto at = [](const ggml_tensor & t, int64_t row, int64_t i2, int64_t i3) { return (char *) t.data + row*t.nb[1] + i2*t.nb[2] + i3*t.nb[3]; };

        head h;
        h.n_q  = last - first;
        h.n_kv = k.ne[1];
        h.d_k  = k.ne[0];
        h.d_v  = v.ne[0];
        h.q    = at(q, first, i2, i3);
        h.k    = at(k, 0, i2/(q.ne[2]/k.ne[2]), i3/(q.ne[3]/k.ne[3]));
        h.v    = at(v, 0, i2/(q.ne[2]/v.ne[2]), i3/(q.ne[3]/v.ne[3]));
        h.mask = mask ? at(*mask, first, i2 % mask->ne[2], i3 % mask->ne[3]) : nullptr;
        h.out  = at(*dst, i2, first, i3); // [d_v, heads, rows]
        h.half  = k.type == GGML_TYPE_F16;
        h.scale = option(*dst, 0);
        h.stride_q    = q.nb[1];
        h.stride_k    = k.nb[1];
        h.stride_v    = v.nb[1];
        h.stride_mask = mask ? mask->nb[1] : 0;
        h.stride_out  = dst->nb[2];
        attend(h, work);
    });
    return true;
}
