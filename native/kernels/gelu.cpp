#include "kernels/gelu.h"

#include "kernels/choice.h"

#include "ggml-cpu-impl.h"

#include <optional>

using namespace pyfastv::kernels;

static std::optional<gelu_kind> kind_of(const ggml_tensor * dst) {
    switch (ggml_get_unary_op(dst)) {
        case GGML_UNARY_OP_GELU:       return gelu_kind::tanh;
        case GGML_UNARY_OP_GELU_QUICK: return gelu_kind::quick;
        case GGML_UNARY_OP_GELU_ERF:   return gelu_kind::erf;
        default:                       return std::nullopt;
    }
}

bool pyfastv_unary(const ggml_compute_params * params, ggml_tensor * dst) {
    const auto * kernels = params->use_ref ? nullptr : chosen_kernels();
    const auto   kind    = kind_of(dst);
    const auto & x       = *dst->src[0];
    if (!kernels || !kind || x.type != GGML_TYPE_F32 || dst->type != GGML_TYPE_F32 || !ggml_is_contiguous(&x) || !ggml_is_contiguous(dst)) {
        return false;
    }
    // by rows, so that a thread's lines of the cache are its own
    const int64_t n = ggml_nrows(dst), first = n*params->ith/params->nth, last = n*(params->ith + 1)/params->nth;

    kernels->gelu(*kind, (const float *) x.data + first*x.ne[0], (float *) dst->data + first*x.ne[0], (last - first)*x.ne[0]);
    return true;
}
