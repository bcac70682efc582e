"""Our attention, GELU, and products with activations of more than two axes, against NumPy in double."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ggml_ops
import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from test_kernels import HERE, expected_product, needs_kernels

from pyfastv import _native

GELUS = {"tanh": 8, "quick": 9, "erf": 16}  # of enum ggml_unary_op


def gelu(kind: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
    if kind == "tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if kind == "quick":
        return x / (1 + np.exp(-1.702 * x))
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


@needs_kernels
@pytest.mark.parametrize("kind", GELUS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (37, 64), (5, 1000)])
def test_gelu(kind: str, shape: tuple[int, int]) -> None:
    x = np.random.default_rng(1).standard_normal(shape, np.float32) * np.float32(4)
    x.flat[: min(x.size, 6)] = [0, -0.0, 80, -80, 1e-30, -20][: x.size]
    got = ggml_ops.unary(GELUS[kind], x, 2)
    assert np.abs(got - gelu(kind, x.astype(np.float64))).max() <= 2e-6 * np.abs(x).max()


def attention(
    q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], mask: NDArray[Any] | None, scale: float
) -> NDArray[np.float64]:
    """[rows, heads, d]; a row that sees nothing is 0."""
    group = len(q) // len(k)
    keys, values = (a.astype(np.float64).repeat(group, 0) for a in (k, v))
    scores = np.einsum("hnd,hmd->hnm", q.astype(np.float64), keys) * scale
    if mask is not None:
        scores = scores + mask.astype(np.float64)
    most = scores.max(-1, keepdims=True)
    weights = np.where(np.isneginf(scores), 0.0, np.exp(scores - np.where(np.isneginf(most), 0, most)))
    total = weights.sum(-1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    return np.einsum("hnm,hmd->nhd", weights, values)


def make_mask(kind: str, rows: int, keys: int) -> NDArray[np.float16] | None:
    i, j = np.arange(rows)[:, None], np.arange(keys)[None]
    if kind == "none":
        return None
    if kind == "causal":
        seen = j <= i + keys - rows
    elif kind == "windows":  # Qwen2.5-VL's; the last window is cut, and the rows of one see nothing
        seen = (i // 64 == j // 64) & (i // 64 != 1)
    else:
        seen = np.random.default_rng(5).random((rows, keys)) < 0.1
    values = np.random.default_rng(6).standard_normal((rows, keys)) if kind == "random" else 0.0
    return np.where(seen, values, -np.inf).astype(np.float16)


SHAPES = [  # heads, key heads, rows, keys, d_k, d_v
    (2, 2, 64, 16, 64, 64),
    (3, 1, 67, 40, 72, 72),
    (4, 2, 100, 300, 80, 80),
    (1, 1, 200, 513, 128, 128),
    (2, 1, 401, 401, 96, 64),
    (2, 2, 65, 257, 40, 24),
    (5, 5, 73, 1, 64, 64),
]


@needs_kernels
@pytest.mark.parametrize("kind", ["none", "causal", "windows", "random"])
@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_attention(shape: tuple[int, ...], half: bool, kind: str) -> None:
    heads, key_heads, rows, keys, d_k, d_v = shape
    random = np.random.default_rng(2)
    q = random.standard_normal((heads, rows, d_k), np.float32)
    k = random.standard_normal((key_heads, keys, d_k), np.float32).astype(np.float16 if half else np.float32)
    v = random.standard_normal((key_heads, keys, d_v), np.float32).astype(k.dtype)
    mask, scale = make_mask(kind, rows, keys), 3 / math.sqrt(d_k)
    got = ggml_ops.attention(q, k, v, mask, scale, 3)
    # rows are rounded to 12 or 13 bits of their largest number; llama.cpp rounds them to the 11 of F16
    assert np.abs(got - attention(q, k, v, mask, scale)).max() < 1.5e-3 * np.abs(v).max()


@needs_kernels
def test_attention_of_large_scores() -> None:
    random = np.random.default_rng(3)
    k, v = (random.standard_normal((1, 600, 64), np.float32) for _ in range(2))
    own = np.arange(70) * 8
    got = ggml_ops.attention(k[:, own] * np.float32(100), k, v, None, 1.0, 1)
    assert np.abs(got[:, 0] - v[0, own]).max() < 5e-4 * np.abs(v).max()


@needs_kernels
def test_small_weights_beside_a_large_one_keep_their_share() -> None:
    # as behind a sink: a key that takes most of the weight, and gives nothing
    random = np.random.default_rng(8)
    k, v = (
        np.zeros((1, 900, 64), np.float32),
        random.standard_normal((1, 900, 64), np.float32) + np.float32(1),
    )
    k[0, 3], v[0, 3] = 1, 0
    q = np.full((1, 64, 64), 9 / 64, np.float32)  # exp(9) against 899
    got, expected = ggml_ops.attention(q, k, v, None, 1.0, 1), attention(q, k, v, None, 1.0)
    assert np.abs(got - expected).max() < 2e-3 * np.abs(expected).max()


@needs_kernels
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e4])
@pytest.mark.parametrize("where", ["k", "v"])
def test_keys_that_a_mask_hides_do_not_matter(where: str, value: float) -> None:
    random = np.random.default_rng(9)
    q, k, v = (random.standard_normal((1, 100, 64), np.float32) for _ in range(3))
    mask = make_mask("causal", 100, 100)
    expected = ggml_ops.attention(q, k, v, mask, 0.1, 1)
    (k if where == "k" else v)[0, 90, 5] = value
    got = ggml_ops.attention(q, k, v, mask, 0.1, 1)
    assert got[:90].tobytes() == expected[:90].tobytes()
    if not np.isfinite(value):
        assert np.isnan(got[90:]).all()


@needs_kernels
def test_queries_that_are_no_numbers_give_none() -> None:
    random = np.random.default_rng(10)
    q, k, v = (random.standard_normal((1, 70, 64), np.float32) for _ in range(3))
    q[0, 7, 3] = np.nan
    got = ggml_ops.attention(q, k, v, None, 0.1, 1)
    assert np.isnan(got[7]).all()
    assert np.isfinite(np.delete(got, 7, 0)).all()


@needs_kernels
def test_a_row_of_attention_does_not_depend_on_those_beside_it() -> None:
    random = np.random.default_rng(4)
    q = random.standard_normal((2, 300, 64), np.float32)
    k, v = (random.standard_normal((2, 300, 64), np.float32).astype(np.float16) for _ in range(2))
    mask = make_mask("causal", 300, 300)
    assert mask is not None
    together = ggml_ops.attention(q, k, v, mask, 0.1, 2)
    for rows in (slice(0, 64), slice(100, 181), slice(210, 300)):
        alone = ggml_ops.attention(np.ascontiguousarray(q[:, rows]), k, v, mask[rows], 0.1, 1)
        assert alone.tobytes() == together[rows].tobytes()


@needs_kernels
@pytest.mark.parametrize("kind", ["q4_0", "q8_0", "q4_K", "q6_K"])
@pytest.mark.parametrize("swapped", [False, True])
def test_activations_have_more_axes_and_lie_anyhow(kind: str, swapped: bool) -> None:
    weights, values = _native.random_weights(kind, 50, 512, 3)
    x = np.random.default_rng(7).standard_normal((2, 3, 9, 512), np.float32)
    got = ggml_ops.product(gguf.GGMLQuantizationType[kind.upper()].value, weights, 512, x, 2, swapped)
    exact, size = expected_product(kind, values, x.reshape(-1, 512))
    assert (np.abs(got.reshape(exact.shape) - exact) / size).max() < 1e-6


@pytest.mark.parametrize("kernels", [k for k in HERE if k != HERE[0]])
def test_the_other_kernels_of_this_cpu_pass_these_tests(kernels: str, tmp_path: Path) -> None:
    env = os.environ | {"PYFASTV_KERNELS": kernels, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        # the latter are of processes of their own, and of the kernels that are chosen
        "not other_kernels and not test_a_model_of_experts",
        __file__,
        str(Path(__file__).with_name("test_expert_products.py")),
    ]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:]
