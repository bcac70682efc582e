"""Single operations of ggml's CPU backend on this package's libraries, through ctypes."""

from __future__ import annotations

import ctypes
import itertools
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
        self._frees: list[tuple[str, int]] = [("ggml_free", self._context)]

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

    def packed(self, kind: int, shape: Sequence[int], data: NDArray[Any] | None) -> Any:
        """As raw(), where a model's weights lie; without data: not written yet."""
        context = self.call("ggml_init", c_void_p, _InitParams(1 << 16, None, True))
        sizes = (c_int64(n) for n in [*shape, 1, 1, 1][:4])
        res = c_void_p(self.call("ggml_new_tensor_4d", c_void_p, c_void_p(context), c_int(kind), *sizes))
        place = self._weights_buffer_type()
        size = self.call("ggml_backend_buft_get_alloc_size", c_size_t, place, res)
        buffer = self.call("ggml_backend_buft_alloc_buffer", c_void_p, place, c_size_t(size))
        base = c_void_p(self.call("ggml_backend_buffer_get_base", c_void_p, c_void_p(buffer)))
        assert self.call("ggml_backend_tensor_alloc", c_int, c_void_p(buffer), res, base) == 0
        self._frees += [("ggml_backend_buffer_free", buffer), ("ggml_free", context)]
        if data is not None:
            self.write(res, data)
        return res

    def write(self, tensor: Any, data: NDArray[np.uint8], offset: int = 0) -> None:
        data = np.ascontiguousarray(data)
        pointer = data.ctypes.data_as(c_void_p)
        self.call("ggml_backend_tensor_set", None, tensor, pointer, c_size_t(offset), c_size_t(data.nbytes))

    def read(self, tensor: Any, size: int, offset: int = 0) -> NDArray[np.uint8]:
        res = np.empty(size, np.uint8)
        pointer = res.ctypes.data_as(c_void_p)
        self.call("ggml_backend_tensor_get", None, tensor, pointer, c_size_t(offset), c_size_t(size))
        return res

    def supports(self, tensor: Any) -> bool:
        """Does the CPU backend run this operation?"""
        return bool(self.call("ggml_backend_dev_supports_op", c_bool, self._device(), tensor))

    def _device(self) -> Any:
        registry = c_void_p(self.call("ggml_backend_cpu_reg", c_void_p))
        return c_void_p(self.call("ggml_backend_reg_dev_get", c_void_p, registry, c_size_t(0)))

    def _weights_buffer_type(self) -> Any:
        registry = c_void_p(self.call("ggml_backend_cpu_reg", c_void_p))
        name = b"ggml_backend_dev_get_extra_bufts"
        address = self.call("ggml_backend_reg_get_proc_address", c_void_p, registry, name)
        places = ctypes.CFUNCTYPE(ctypes.POINTER(c_void_p), c_void_p)(address)(self._device())
        for i in itertools.takewhile(lambda i: places[i], itertools.count()):
            place = c_void_p(places[i])
            if self.call("ggml_backend_buft_name", ctypes.c_char_p, place) == b"CPU_PYFASTV":
                return place
        raise LookupError("there is no CPU_PYFASTV")

    def close(self) -> None:
        for name, pointer in reversed(self._frees):
            self.call(name, None, c_void_p(pointer))


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
    packed: bool = False,
) -> NDArray[np.float32]:
    """x [tokens, rows, columns] times the matrices ids [tokens, used] of weights [experts, outputs, bytes], which take
    the rows of their token in turn -> [tokens, used, outputs].

    ``packed``: the weights lie where a model's do.
    ``strided``: the rows of ids and x lie apart, and x is, in memory, the other way round."""

    def build(ops: Ops) -> Any:
        make = ops.packed if packed else ops.raw
        matrices = make(kind, (columns, weights.shape[1], len(weights)), weights)
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
