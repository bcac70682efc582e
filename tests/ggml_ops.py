"""Single operations of ggml's CPU backend on this package's libraries, through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import c_bool, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pyfastv

F32, F16, I32 = 0, 1, 26
_TYPES = {np.dtype(np.float32): F32, np.dtype(np.float16): F16, np.dtype(np.int32): I32}


class _InitParams(ctypes.Structure):
    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


def _library(name: str) -> Any:
    (path,) = pyfastv.lib_path().glob(f"*{name}.*")
    return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


class Ops:
    """A context of tensors. Shapes are ggml's, innermost first."""

    def __init__(self) -> None:
        self._base, self._cpu = _library("ggml-base"), _library("ggml-cpu")
        self._context = self.call("ggml_init", c_void_p, _InitParams(256 << 20, None, False))

    def call(self, name: str, result: Any, *arguments: Any) -> Any:
        function = getattr(self._cpu if hasattr(self._cpu, name) else self._base, name)
        function.restype = result
        return function(*arguments)

    def make(self, name: str, *arguments: Any) -> Any:
        """A tensor of an operation whose arguments are ctypes' values."""
        return c_void_p(self.call(name, c_void_p, c_void_p(self._context), *arguments))

    def tensor(self, values: NDArray[Any]) -> Any:
        """With a copy of the values, whose last axis is ggml's first."""
        values = np.ascontiguousarray(values)
        shape = [*reversed(values.shape), 1, 1, 1, 1][:4]
        return self.raw(_TYPES[values.dtype], shape, values)

    def raw(self, kind: int, shape: Sequence[int], data: NDArray[Any]) -> Any:
        """Of a type that NumPy may not know, with these bytes."""
        res = self.make("ggml_new_tensor_4d", c_int(kind), *(c_int64(n) for n in [*shape, 1, 1, 1][:4]))
        ctypes.memmove(self.call("ggml_get_data", c_void_p, res), data.ctypes.data, data.nbytes)
        return res

    def compute(self, tensor: Any, shape: Sequence[int], threads: int) -> NDArray[np.float32]:
        """Its F32 values; ``shape`` is NumPy's."""
        graph = self.make("ggml_new_graph")
        self.call("ggml_build_forward_expand", None, graph, tensor)
        status = self.call(
            "ggml_graph_compute_with_ctx", c_int, c_void_p(self._context), graph, c_int(threads)
        )
        assert status == 0
        data = self.call("ggml_get_data", c_void_p, tensor)
        size = int(np.prod(shape))
        return (
            np.ctypeslib.as_array(ctypes.cast(data, ctypes.POINTER(c_float)), (size,)).reshape(shape).copy()
        )

    def close(self) -> None:
        self.call("ggml_free", None, c_void_p(self._context))


def run(threads: int, shape: Sequence[int], build: Callable[[Ops], Any]) -> NDArray[np.float32]:
    """What the tensor of ``build`` computes."""
    ops = Ops()
    try:
        return ops.compute(build(ops), shape, threads)
    finally:
        ops.close()


def unary(number: int, x: NDArray[np.float32], threads: int) -> NDArray[np.float32]:
    """``number``: of enum ggml_unary_op."""
    return run(threads, x.shape, lambda ops: ops.make("ggml_unary", ops.tensor(x), c_int(number)))


def attention(
    q: NDArray[np.float32],
    k: NDArray[Any],
    v: NDArray[Any],
    mask: NDArray[np.float16] | None,
    scale: float,
    threads: int,
) -> NDArray[np.float32]:
    """q [heads, rows, d], k and v [key heads, keys, d], mask [rows, keys] -> [rows, heads, d]."""

    def build(ops: Ops) -> Any:
        tensors = [ops.tensor(q), ops.tensor(k), ops.tensor(v), None if mask is None else ops.tensor(mask)]
        return ops.make("ggml_flash_attn_ext", *tensors, c_float(scale), c_float(0), c_float(0))

    return run(threads, (q.shape[1], q.shape[0], v.shape[2]), build)


def product(
    kind: int,
    weights: NDArray[np.uint8],
    columns: int,
    x: NDArray[np.float32],
    threads: int,
    swapped: bool = False,
) -> NDArray[np.float32]:
    """x [..., rows, columns] times the rows of a matrix of this type -> [..., rows, outputs].

    ``swapped``: the two axes before the last are, in memory, the other way round."""

    def build(ops: Ops) -> Any:
        rows = ops.tensor(np.ascontiguousarray(x.swapaxes(-2, -3)) if swapped else x)
        if swapped:
            rows = ops.make("ggml_permute", rows, *(c_int32(axis) for axis in (0, 2, 1, 3)))
        return ops.make("ggml_mul_mat", ops.raw(kind, (columns, len(weights)), weights), rows)

    return run(threads, (*x.shape[:-1], len(weights)), build)


def experts(
    kind: int,
    weights: NDArray[np.uint8],
    columns: int,
    x: NDArray[np.float32],
    ids: NDArray[np.int32],
    threads: int,
    strided: bool = False,
) -> NDArray[np.float32]:
    """x [tokens, rows, columns] times the matrices ids [tokens, used] of weights [experts, outputs, bytes], which take
    the rows of their token in turn -> [tokens, used, outputs].

    ``strided``: the rows of ids and x lie apart, and x is, in memory, the other way round."""

    def build(ops: Ops) -> Any:
        matrices = ops.raw(kind, (columns, weights.shape[1], len(weights)), weights)
        if not strided:
            return ops.make("ggml_mul_mat_id", matrices, ops.tensor(x), ops.tensor(ids))
        wide = ops.tensor(np.pad(ids, ((0, 0), (1, 2)), constant_values=-1))
        n_used, row = ids.shape[1], 4 * (ids.shape[1] + 3)
        chosen = ops.make(
            "ggml_view_2d", wide, c_int64(n_used), c_int64(len(ids)), c_size_t(row), c_size_t(4)
        )
        swapped = ops.tensor(np.ascontiguousarray(x.swapaxes(0, 1)))
        rows = ops.make("ggml_permute", swapped, *(c_int32(axis) for axis in (0, 2, 1, 3)))
        return ops.make("ggml_mul_mat_id", matrices, rows, chosen)

    return run(threads, (*ids.shape, weights.shape[1]), build)
