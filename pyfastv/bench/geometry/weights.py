"""Random tensors of ggml's types."""

from __future__ import annotations

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

__all__ = ["RandomTensors", "size_in_bytes", "type_for_rows"]

Bytes = NDArray[np.uint8]

# Most random values drawn for each (type, deviation); larger tensors repeat them.
_POOL_ELEMENTS = 16 << 20

_FALLBACK = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}


def type_for_rows(type_: Type, n: int) -> Type:
    """The type that llama-quantize takes in place of ``type_`` where rows of ``n`` do not divide into its blocks."""
    block, _ = gguf.GGML_QUANT_SIZES[type_]
    if n % block == 0:
        return type_
    return _FALLBACK.get(type_, Type.F16)


def size_in_bytes(shape: tuple[int, ...], type_: Type) -> int:
    """Of a tensor; ``shape`` in numpy's order, rows last."""
    block, n_bytes = gguf.GGML_QUANT_SIZES[type_]
    return int(np.prod(shape, dtype=np.int64)) // block * n_bytes


class RandomTensors:
    """Random tensors of a type and a standard deviation, cut from pools that are drawn once.

    ``largest``: elements of the largest tensor that will be asked for."""

    def __init__(self, seed: int, largest: int = _POOL_ELEMENTS) -> None:
        self._pool_elements = min(_POOL_ELEMENTS, largest)
        self._random = np.random.default_rng(seed)
        self._pools: dict[tuple[Type, float], Bytes] = {}

    def draw(self, shape: tuple[int, ...], type_: Type, std: float) -> Bytes | NDArray[np.floating]:
        """One tensor of ``shape`` (numpy's order); quantized ones as bytes (..., bytes of a row)."""
        n = int(np.prod(shape, dtype=np.int64))
        if type_ in (Type.F32, Type.F16):
            dtype = np.dtype(np.float32 if type_ == Type.F32 else np.float16)
            return self._cut(type_, std, n).view(dtype).reshape(shape)
        block_elements, block_bytes = gguf.GGML_QUANT_SIZES[type_]
        row_bytes = shape[-1] // block_elements * block_bytes
        return self._cut(type_, std, n // block_elements).reshape(*shape[:-1], row_bytes)

    def _cut(self, type_: Type, std: float, blocks: int) -> Bytes:
        """``blocks`` consecutive blocks, as flat bytes, from a random place of the pool and around its end."""
        if (type_, std) not in self._pools:
            self._pools[type_, std] = self._draw_pool(type_, std)
        pool = self._pools[type_, std]
        start = int(self._random.integers(len(pool)))
        rounds = (start + blocks) // len(pool)
        pieces = [pool[start : start + blocks], *[pool] * rounds]
        return np.concatenate(pieces)[:blocks].reshape(-1)

    def _draw_pool(self, type_: Type, std: float) -> Bytes:
        """A pool as bytes (blocks, bytes of a block). Their odd number keeps repetitions off the rows."""
        block_elements, block_bytes = gguf.GGML_QUANT_SIZES[type_]
        blocks = max(1, self._pool_elements // block_elements - 1)
        if type_ in (Type.Q4_K, Type.Q5_K):
            return self._draw_q4_or_q5_k(blocks, std, 4 if type_ == Type.Q4_K else 5)
        if type_ == Type.Q6_K:
            return self._draw_q6_k(blocks, std)
        if type_ == Type.IQ4_NL:
            return self._draw_iq4_nl(blocks, std)
        values = self._random.standard_normal((blocks, block_elements), dtype=np.float32) * np.float32(std)
        if type_ in (Type.F32, Type.F16):
            dtype = np.float32 if type_ == Type.F32 else np.float16
            return np.asarray(values.astype(dtype).view(np.uint8))
        return np.asarray(gguf.quants.quantize(values, type_), np.uint8).reshape(blocks, block_bytes)

    def _draw_q4_or_q5_k(self, blocks: int, std: float, bits: int) -> Bytes:
        """Q4_K and Q5_K, uniform: d and dmin f16, 12 bytes of 6-bit scales and minima (all 32), then 32 of the fifth
        bits if there are five, and 128 of nibbles."""
        step = std / np.sqrt((4**bits - 1) / 12)
        pool = np.empty((blocks, 16 + 32 * bits), np.uint8)
        pool[:, 0:4] = np.array([step / 32, (2**bits - 1) / 2 * step / 32], np.float16).view(np.uint8)
        pool[:, 4:12] = 0xA0  # 32 in the low six bits, its high bits again in the upper two, for entries 4..7
        pool[:, 12:16] = 0
        pool[:, 16:] = self._random.integers(0, 256, (blocks, 32 * bits), np.uint8)
        return pool

    def _draw_iq4_nl(self, blocks: int, std: float) -> Bytes:
        """IQ4_NL: d f16, of random sign since the 16 values have a mean of -6, and 16 bytes of their numbers."""
        step = std / np.sqrt(np.mean(np.square(gguf.quants.IQ4_NL.kvalues, dtype=np.float64)))
        pool = np.empty((blocks, 18), np.uint8)
        signs = self._random.integers(0, 2, (blocks, 1)) * 2 - 1
        pool[:, :2] = (signs * step).astype(np.float16).view(np.uint8)
        pool[:, 2:] = self._random.integers(0, 256, (blocks, 16), np.uint8)
        return pool

    def _draw_q6_k(self, blocks: int, std: float) -> Bytes:
        """Q6_K, uniform: 128 + 64 bytes of 6-bit values minus 32, 16 int8 scales of random sign, d f16."""
        step = std / np.sqrt((64**2 - 1) / 12)
        pool = np.empty((blocks, 210), np.uint8)
        pool[:, :192] = self._random.integers(0, 256, (blocks, 192), np.uint8)
        # of random sign, for the mean of a value is -0.5
        signs = self._random.integers(0, 2, (blocks, 16), np.int8) * 2 - 1
        pool[:, 192:208] = (signs * 64).astype(np.int8).view(np.uint8)
        pool[:, 208:] = np.array([step / 64], np.float16).view(np.uint8)
        return pool
