"""What the CUDA and Metal backends say of a graph's nodes, on a machine that has neither: their own ``supports_op``, as
it stands in llama.cpp's source, compiled for this CPU.

Left out is what only a device can say. Flash attention counts as supported: llama.cpp tries it when a context is made.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import pyfastv

import fetch

TREE = Path(__file__).parents[1] / "third_party" / "llama.cpp"

# CUDA 11.7 and newer bring CUB; a Mac with an M1 or newer has all of the rest
PROGRAM = """
#define GGML_CUDA_USE_CUB
#include "ggml.h"
#include "ggml-impl.h"
#include "ggml-backend-impl.h"
#include <cstdio>
#include <cstring>

namespace cuda {{
#define QK_K 256
struct ggml_backend_cuda_device_context      {{ int device; }};
struct ggml_backend_cuda_buffer_type_context {{ int device; }};
static bool ggml_backend_buft_is_cuda(ggml_backend_buffer_type_t)             {{ return false; }}
static bool ggml_cuda_op_mul_mat_use_fwht(const ggml_tensor *)                {{ return false; }}
static bool ggml_cuda_flash_attn_ext_supported(int, const ggml_tensor *)      {{ return true; }}
static bool ggml_cuda_lightning_indexer_supported(int, const ggml_tensor *)   {{ return false; }}
{cuda}
// What its kernels assert or take for granted beyond that: they would end the process, or read other numbers.
static bool kernel_takes(const ggml_tensor * op) {{
    switch (op->op) {{
        case GGML_OP_ARGMAX:
        case GGML_OP_ARGSORT:
        case GGML_OP_CLAMP:
        case GGML_OP_LOG:
        case GGML_OP_SCALE:
        case GGML_OP_SOFT_MAX:
        case GGML_OP_SQR:
            return op->src[0]->type == GGML_TYPE_F32 && ggml_is_contiguous(op->src[0]);
        case GGML_OP_GET_ROWS:
            return op->src[1]->type == GGML_TYPE_I32 && op->src[1]->ne[3] == 1 &&
                op->src[0]->nb[0] == ggml_type_size(op->src[0]->type) &&
                op->src[1]->nb[0] == ggml_type_size(GGML_TYPE_I32);
        default:
            return true;
    }}
}}
}}

namespace metal {{
#define OP_LIGHTNING_INDEXER_DK 128
#define OP_LIGHTNING_INDEXER_NH 64
struct device {{
    struct {{
        bool   has_simdgroup_mm = true, has_simdgroup_reduction = true, has_bfloat = true;
        size_t max_theadgroup_memory_size = 32768;
    }} props;
}};
typedef device * ggml_metal_device_t;
static bool ggml_metal_op_mul_mat_use_fwht(const ggml_tensor *, size_t)    {{ return false; }}
static bool ggml_metal_op_mul_mat_use_mm(const ggml_tensor *, bool has)    {{ return has; }}
static bool ggml_metal_op_mul_mat_id_use_mm(const ggml_tensor *, bool has) {{ return has; }}
{metal}
}}

extern "C" bool cuda_runs(const ggml_tensor * op) {{
    cuda::ggml_backend_cuda_device_context context {{ 0 }};
    ggml_backend_device dev {{}};
    dev.context = &context;
    return cuda::ggml_backend_cuda_device_supports_op(&dev, op) && cuda::kernel_takes(op);
}}

extern "C" bool metal_runs(const ggml_tensor * op) {{
    metal::device dev;
    return metal::ggml_metal_device_supports_op(&dev, op);
}}

extern "C" void describe(const ggml_tensor * op, char * text, size_t size) {{
    snprintf(text, size, "%s %s", ggml_op_desc(op), ggml_type_name(op->type));
    for (int i = 0; i < 2 && op->src[i]; ++i) {{
        snprintf(text + strlen(text), size - strlen(text), ", %s%s", ggml_type_name(op->src[i]->type),
                ggml_is_contiguous(op->src[i]) ? "" : " strided");
    }}
}}
"""


def _function(file: Path, name: str) -> str:
    """Its definition, from the first line to the brace that closes it."""
    found = re.findall(rf"^(?:static )?bool {name}\(.*?^\}}$", file.read_text("utf-8"), re.M | re.S)
    assert len(found) == 1, (file.name, name)
    return str(found[0])


class GpuSupport:
    """Asks them of nodes, and remembers what they were asked and what they refused."""

    def __init__(self, folder: Path) -> None:
        """Compiles into the folder. Skips the test where there is no compiler."""
        compiler = shutil.which(os.environ.get("CXX", "c++"))
        if compiler is None or platform.system() != "Linux":
            pytest.skip("this machine has no C++ compiler for Linux")
        fetch.make_tree(TREE, fetch.PATCHES)
        source = TREE / "ggml" / "src"
        metal = source / "ggml-metal" / "ggml-metal-device.m"
        (folder / "gpu.cpp").write_text(
            PROGRAM.format(
                cuda=_function(source / "ggml-cuda" / "ggml-cuda.cu", "ggml_backend_cuda_device_supports_op"),
                metal=_function(metal, "ggml_metal_supports_mul_mat_op")
                + _function(metal, "ggml_metal_device_supports_op"),
            )
        )
        (base,) = pyfastv.lib_path().glob("*ggml-base.so")
        flags = [
            "-std=c++17",
            "-O1",
            "-w",
            "-fPIC",
            "-shared",
            f"-I{TREE / 'ggml' / 'include'}",
            f"-I{source}",
        ]
        command = [compiler, *flags, "gpu.cpp", str(base), f"-Wl,-rpath,{base.parent}", "-o", "gpu.so"]
        subprocess.run(command, cwd=folder, check=True)
        self._library = ctypes.CDLL(str(folder / "gpu.so"))
        for name in ("cuda_runs", "metal_runs"):
            function = getattr(self._library, name)
            function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_bool
        self._library.describe.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
        self._library.describe.restype = None
        self._library.ggml_get_name.argtypes = [ctypes.c_void_p]
        self._library.ggml_get_name.restype = ctypes.c_char_p
        self.forget()

    def forget(self) -> None:
        self.asked: set[str] = set()
        """Operations, their types, and those of what they read, as "SCALE f32, f32"."""
        self.names: set[str] = set()
        self.refused: set[str] = set()
        """Of them, those that a backend leaves to the CPU, as "CUDA: ..."."""

    def on_node(self, node: int, ask: bool) -> bool:
        """An eval callback, which looks at every node and stops at none."""
        if ask:
            text = ctypes.create_string_buffer(200)
            self._library.describe(node, text, len(text))
            told = text.value.decode()
            self.asked.add(told)
            self.names.add(self._library.ggml_get_name(node).decode())
            for name in ("cuda", "metal"):
                if not getattr(self._library, f"{name}_runs")(node):
                    self.refused.add(f"{name}: {told}")
        return False
