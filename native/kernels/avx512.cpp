#include "kernels/attention_tiles.h"
#include "kernels/gelu_tiles.h"
#include "kernels/tiles.h"

const pyfastv::kernels::cpu_kernels & pyfastv::kernels::avx512_kernels() {
    static const cpu_kernels res = { "avx512", kernel_of, pack, attend, gelu };
    return res;
}
