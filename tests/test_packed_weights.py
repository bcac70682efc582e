"""The buffers where weights lie as our kernels read them: what is written is read back, and only products run on it."""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import c_int64, c_size_t

import gguf
import numpy as np
import pytest
from ggml_ops import Ops
from numpy.typing import NDArray
from test_kernels import SCALED, TYPES, needs_kernels

from pyfastv import _native

pytestmark = needs_kernels


@pytest.fixture
def ops() -> Iterator[Ops]:
    res = Ops()
    yield res
    res.close()


def number_of(kind: str) -> int:
    return int(gguf.GGMLQuantizationType[kind.upper()].value)


def some_bytes(kind: str, columns: int, rows: int) -> NDArray[np.uint8]:
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.upper()]]
    return np.random.default_rng(columns + rows).integers(0, 256, (rows, columns // block * size), np.uint8)


def test_weights_are_offered_to_our_buffer_first() -> None:
    """Before llama.cpp's own for AMX, whose products are slower."""
    assert _native.kernel_places()[0] == ("CPU", "CPU_PYFASTV")


# columns: one block, an odd number of them behind steps, whole steps; outputs: one panel, cut, several; matrices
SHAPES = [(256, 16, 1), (512, 17, 1), (768, 40, 3), (256, 200, 2)]
ODD = [(32, 16, 1), (96, 33, 2), (288, 16, 1), (2080, 18, 1)]


@pytest.mark.parametrize(
    ("kind", "shape"),
    [(kind, shape) for kind in TYPES for shape in SHAPES + (ODD if kind in SCALED else [])],
)
def test_what_is_written_is_read_back(ops: Ops, kind: str, shape: tuple[int, int, int]) -> None:
    columns, outputs, matrices = shape
    data = some_bytes(kind, columns, outputs * matrices)
    tensor = ops.packed(number_of(kind), shape, data)
    assert ops.read(tensor, data.nbytes).tobytes() == data.tobytes()

    random, flat = np.random.default_rng(1), data.ravel()
    for _ in range(20):
        begin, end = sorted(random.integers(0, flat.size + 1, 2))
        assert ops.read(tensor, end - begin, begin).tobytes() == flat[begin:end].tobytes(), (begin, end)


@pytest.mark.parametrize("kind", TYPES)
def test_writing_a_part_leaves_the_rest(ops: Ops, kind: str) -> None:
    shape = (512, 40, 2)
    data = some_bytes(kind, 512, 80)
    tensor = ops.packed(number_of(kind), shape, data)
    flat, random = data.ravel().copy(), np.random.default_rng(2)
    for _ in range(20):
        begin, end = sorted(random.integers(0, flat.size + 1, 2))
        flat[begin:end] = random.integers(0, 256, end - begin, np.uint8)
        ops.write(tensor, flat[begin:end], begin)
        assert ops.read(tensor, flat.size).tobytes() == flat.tobytes(), (begin, end)


def test_large_weights_are_packed_by_several_threads(ops: Ops) -> None:
    data = some_bytes("q4_K", 4096, 4104)
    tensor = ops.packed(number_of("q4_K"), (4096, 4104), data)
    assert ops.read(tensor, data.nbytes).tobytes() == data.tobytes()


def test_a_part_of_a_matrix_is_read_as_its_rows(ops: Ops) -> None:
    data = some_bytes("q8_0", 512, 64)
    tensor = ops.packed(number_of("q8_0"), (512, 64), data)
    view = ops.make("ggml_view_2d", tensor, c_int64(512), c_int64(32), c_size_t(544), c_size_t(5 * 544))
    ops.call("ggml_backend_view_init", None, view)
    assert ops.read(view, 32 * 544).tobytes() == data[5:37].tobytes()


def test_nothing_but_a_product_of_the_whole_runs_on_them(ops: Ops) -> None:
    tensor = ops.packed(number_of("q4_0"), (512, 64), some_bytes("q4_0", 512, 64))
    rows = ops.tensor(np.zeros((3, 512), np.float32))
    assert ops.supports(ops.make("ggml_mul_mat", tensor, rows))
    part = ops.make("ggml_view_2d", tensor, c_int64(512), c_int64(32), c_size_t(288), c_size_t(0))
    ops.call("ggml_backend_view_init", None, part)
    assert not ops.supports(ops.make("ggml_mul_mat", part, rows))
    numbers = ops.tensor(np.zeros(3, np.int32))
    assert not ops.supports(ops.make("ggml_get_rows", tensor, numbers))


def test_small_matrices_lie_there_as_they_are(ops: Ops) -> None:
    data = some_bytes("q4_0", 512, 15)
    tensor = ops.packed(number_of("q4_0"), (512, 15), data)
    assert ops.read(tensor, data.nbytes).tobytes() == data.tobytes()
    assert not ops.supports(ops.make("ggml_mul_mat", tensor, ops.tensor(np.zeros((3, 512), np.float32))))
