"""Our products of a mixture of experts: against NumPy in double, and against ordinary products, to the bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import ggml_ops
import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from test_kernels import HERE, OURS, TYPES, expected_product, needs_kernels

from pyfastv import _native

import c_api
import random_gguf
from c_api import llama

Array = NDArray[np.float32]

COLUMNS = 512


class Weights(NamedTuple):
    kind: str
    number: int  # of enum ggml_type
    blocks: NDArray[np.uint8]  # [experts, outputs, bytes]
    values: Array  # [experts, outputs, columns]


def make_weights(kind: str, experts: int, outputs: int, columns: int = COLUMNS) -> Weights:
    blocks, values = _native.random_weights(kind, experts * outputs, columns, 5)
    number = gguf.GGMLQuantizationType[kind.upper()].value
    return Weights(
        kind, number, blocks.reshape(experts, outputs, -1), values.reshape(experts, outputs, columns)
    )


def make_rows(tokens: int, rows: int, columns: int = COLUMNS) -> Array:
    return np.random.default_rng(tokens).standard_normal((tokens, rows, columns), np.float32)


def make_ids(tokens: int, used: int, experts: int) -> NDArray[np.int32]:
    """Of skewed numbers of rows, one expert in several places of a token, and the last one without rows."""
    share = np.arange(1, experts) ** 2
    return (
        np.random.default_rng(9).choice(experts - 1, (tokens, used), p=share / share.sum()).astype(np.int32)
    )


def by_ordinary_products(weights: Weights, x: Array, ids: NDArray[np.int32]) -> Array:
    """[tokens, used, outputs]: each expert times the rows that it takes."""
    tokens, used = ids.shape
    slots = (
        np.broadcast_to(x, (tokens, used, x.shape[2]))
        if x.shape[1] == 1
        else np.tile(x, (1, used // x.shape[1], 1))
    )
    res = np.empty((tokens, used, weights.blocks.shape[1]), np.float32)
    for expert in np.unique(ids):
        rows = np.ascontiguousarray(slots[ids == expert])
        res[ids == expert] = ggml_ops.product(
            weights.number, weights.blocks[expert], x.shape[2], rows[None], 1
        )[0]
    return res


def assert_exact(weights: Weights, x: Array, ids: NDArray[np.int32], got: Array) -> None:
    for expert in np.unique(ids):
        token, slot = np.nonzero(ids == expert)
        exact, size = expected_product(weights.kind, weights.values[expert], x[token, slot % x.shape[1]])
        assert (np.abs(got[token, slot] - exact) / size).max() < 1e-6, (x.shape[1], expert)


@needs_kernels
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("tokens", [1, 7, 40, 300])
def test_a_product_is_that_of_the_rounded_activations(kind: str, tokens: int) -> None:
    weights, ids = make_weights(kind, 6, 40), make_ids(tokens, 4, 6)
    for n_rows in (1, 2, 4):  # for all experts of a token, for every other, for each
        x = make_rows(tokens, n_rows)
        assert_exact(weights, x, ids, ggml_ops.experts(weights.number, weights.blocks, COLUMNS, x, ids, 2))


# every pair of a type, a number of tokens, and packed or not
ALIKE = [
    (kind, tokens, (i + j) % 2 == 0)
    for i, kind in enumerate(TYPES)
    for j, tokens in enumerate((1, 7, 40, 300))
]


@needs_kernels
@pytest.mark.parametrize(("kind", "tokens", "packed"), ALIKE)
def test_bits_are_those_of_ordinary_products(kind: str, tokens: int, packed: bool) -> None:
    weights, ids = make_weights(kind, 6, 40), make_ids(tokens, 4, 6)
    for n_rows in (1, 2, 4):
        x = make_rows(tokens, n_rows)
        got = ggml_ops.experts(weights.number, weights.blocks, COLUMNS, x, ids, 3, packed=packed)
        assert got.tobytes() == by_ordinary_products(weights, x, ids).tobytes(), n_rows


# columns: less than a step, cut, more than a slice; outputs: one panel, cut, many; threads: more than there is work
SIZES = [
    (kind, size, 1 if (i + j) % 2 else 5, packed)
    for i, kind in enumerate(("q4_0", "q8_0"))
    for j, size in enumerate(((32, 16), (224, 17), (288, 200), (2080, 48)))
    for packed in (False, True)
]


@needs_kernels
@pytest.mark.parametrize(("kind", "size", "threads", "packed"), SIZES)
def test_sizes(kind: str, size: tuple[int, int], threads: int, packed: bool) -> None:
    columns, outputs = size
    weights = make_weights(kind, 9, outputs, columns)
    for tokens in (1, 2, 30):
        x, ids = make_rows(tokens, 1, columns), make_ids(tokens, 3, 9)
        got = ggml_ops.experts(weights.number, weights.blocks, columns, x, ids, threads, packed=packed)
        assert got.tobytes() == by_ordinary_products(weights, x, ids).tobytes(), tokens


@needs_kernels
@pytest.mark.parametrize("kind", ["q4_0", "q6_K"])
@pytest.mark.parametrize("n_rows", [1, 3])
def test_ids_and_activations_lie_anyhow(kind: str, n_rows: int) -> None:
    weights, x, ids = make_weights(kind, 5, 33), make_rows(50, n_rows), make_ids(50, 3, 5)
    got = ggml_ops.experts(weights.number, weights.blocks, COLUMNS, x, ids, 2, strided=True)
    assert got.tobytes() == by_ordinary_products(weights, x, ids).tobytes()


@needs_kernels
@pytest.mark.parametrize("kind", TYPES)
def test_a_token_does_not_depend_on_those_beside_it(kind: str) -> None:
    weights, x, ids = make_weights(kind, 5, 40), make_rows(200, 1), make_ids(200, 3, 5)
    together = ggml_ops.experts(weights.number, weights.blocks, COLUMNS, x, ids, 2)
    for tokens in (slice(0, 1), slice(3, 9), slice(50, 120)):
        alone = ggml_ops.experts(weights.number, weights.blocks, COLUMNS, x[tokens], ids[tokens], 1)
        assert alone.tobytes() == together[tokens].tobytes(), tokens


@needs_kernels
def test_small_matrices_are_llama_cpps() -> None:
    weights, x, ids = make_weights("q4_0", 4, 15), make_rows(20, 1), make_ids(20, 2, 4)
    assert_exact(weights, x, ids, ggml_ops.experts(weights.number, weights.blocks, COLUMNS, x, ids, 2))


CHILD = """
import sys
from pathlib import Path
import numpy as np
from c_api import Context, Model
model = Model(Path(sys.argv[1]))
context = Context(model)
logits = []
for first, n in ((0, 40), (40, 1)):
    assert context.tokens(range(first, first + n), first) == 0
    logits.append(context.logits())
np.save(sys.argv[2], logits)
"""


@needs_kernels
def test_a_model_of_experts_has_llama_cpps_logits(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    random_gguf.write(model, "qwen3moe")
    logits = {}
    for kernels in ("stock", HERE[0]):
        file = tmp_path / f"{kernels}.npy"
        env = os.environ | {"PYFASTV_KERNELS": kernels, "PYTHONPATH": str(Path(__file__).parent)}
        command = [sys.executable, "-c", CHILD, str(model), str(file)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        logits[kernels] = np.load(file)
    assert np.abs(logits[HERE[0]] - logits["stock"]).max() < 1e-5 * np.abs(logits["stock"]).max()


@needs_kernels
def test_weights_of_experts_lie_in_our_buffer(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    random_gguf.write(path, "qwen3moe")  # nothing else of it is of a type that our kernels have
    with c_api.logged() as lines:
        model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
    llama.llama_model_free(model)
    assert any(f"{OURS} model buffer" in line for line in lines)
