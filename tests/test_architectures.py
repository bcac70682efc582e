"""Which models run in stages: every plain KV cache model that announces its layers; the others say why not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pyfastv
from pyfastv import _native

import random_gguf
from c_api import OK, UNSUPPORTED, Context, Model, fastv, llama

SUPPORTED = ["llama", "qwen2", "qwen3", "gemma"]
REFUSED: dict[str, tuple[str, random_gguf.Extra]] = {
    "sliding window": ("gemma2", {"attention.sliding_window": 64}),
    "M-RoPE": ("qwen2vl", {"rope.dimension_sections": [8, 4, 4, 0]}),
}

PICTURE = np.random.default_rng(1).normal(size=(40, random_gguf.WIDTH)).astype(np.float32)


@pytest.fixture(params=SUPPORTED)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"{request.param}.gguf"
    random_gguf.write(path, request.param)
    return path


@pytest.fixture
def model(path: Path) -> Iterator[Model]:
    model = Model(path)
    yield model
    model.close()


def ask(context: Context) -> np.ndarray:
    assert context.tokens([1, 2, 3], 0, logits=False) == 0
    assert context.picture(PICTURE, 3) == 0
    assert context.tokens([5, 6, 7, 8], 43) == 0
    logits = context.logits()
    assert logits is not None
    return logits


@pytest.mark.parametrize("k", [1, 3])
def test_without_drop_a_supported_model_is_stock_to_the_bit(model: Model, k: int) -> None:
    stock, staged = Context(model, n_ctx=256), Context(model, n_ctx=256)
    assert staged.attach(k, 0.0) == OK, fastv.pyfastv_last_error().decode()
    np.testing.assert_array_equal(ask(staged), ask(stock))
    stock.close()
    staged.close()


def test_with_drop_the_answer_is_finite_different_and_repeatable(model: Model) -> None:
    context = Context(model, n_ctx=256)
    unpruned = ask(context)
    assert context.attach(1, 0.75) == OK
    first = ask(context)
    assert (context.report().n_visual, context.report().n_visual_kept) == (40, 10)
    context.clear()
    np.testing.assert_array_equal(ask(context), first)
    assert np.isfinite(first).all()
    assert np.abs(first - unpruned).max() > 1e-3
    context.close()


def test_info_says_that_it_can_be_pruned(path: Path) -> None:
    assert _native.model_info(str(path))["unsupported_reason"] is None


@pytest.mark.parametrize("reason", REFUSED)
def test_another_kind_is_refused_with_the_reason_and_runs_without_stages(tmp_path: Path, reason: str) -> None:
    arch, extra = REFUSED[reason]
    path = tmp_path / "model.gguf"
    random_gguf.write(path, arch, extra)

    assert reason.lower().replace(" ", "-") in _native.model_info(str(path))[
        "unsupported_reason"
    ].lower().replace(" ", "-")
    with pytest.raises(pyfastv.UnsupportedModelError, match="cannot be run in stages"):
        pyfastv.Runner(path)
    with pyfastv.Runner(path, fastv=None, n_ctx=256) as runner:
        assert runner.fastv is None


def test_the_refused_context_still_works(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    random_gguf.write(path, *REFUSED["M-RoPE"])
    model = Model(path)
    context = Context(model, n_ctx=256)
    assert context.attach(1, 0.5) == UNSUPPORTED
    assert context.tokens([1, 2, 3], 0) == 0
    assert context.logits() is not None
    assert llama.llama_memory_seq_pos_max(context.memory, 0) == 2
    context.close()
    model.close()
