"""A schedule may be changed and taken off wherever its cuts are: stages without a layer that sees everything, or without
one that has a sliding window, included."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import random_gguf
from c_api import OK, Context, Model, contexts, last_error, llama
from masked_reference import relative_rms

N = 8  # visual tokens
CACHE = {"type_k": llama.GGML_TYPE_F32, "type_v": llama.GGML_TYPE_Q8_0, "flash_attn": True}
FAMILIES = {
    **{name: random_gguf.KINDS[name] for name in ("gemma2", "gemma3", "gemma4 dense")},
    # shorter than the pattern of its layers
    "windows alone": replace(random_gguf.KINDS["gemma3"], arch="gemma3", layers=5),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_cut_may_be_changed_and_taken_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """In a process of its own: what asks a cache without layers for its type ends it."""
    monkeypatch.setitem(random_gguf.KINDS, family, FAMILIES[family])
    path = tmp_path / "model.gguf"
    random_gguf.write(path, family)
    result = subprocess.run(
        [
            sys.executable,
            "-X",
            "faulthandler",
            "-c",
            f"import test_changes_of_stages as t; t.change({str(path)!r})",
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=Path(__file__).parent,  # not the checkout, whose pyfastv is not the installed one
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    assert int(result.stdout) == FAMILIES[family].layers - 1


def change(path: str) -> None:
    model = Model(Path(path))
    cuts = range(1, model.n_layer)
    with contexts(model, n_ctx=256, **CACHE) as make:
        context, stock, fresh = make(), make(), make()
        without = talk(stock)
        for cut in cuts:
            after = cut % (model.n_layer - 1) + 1
            assert_attached(context, cut)
            half = talk(context)
            report = context.report()
            assert report.kv_bytes_used_stock >= sum(report.kv_bytes_used) > 0
            assert_attached(context, after)
            assert_attached(fresh, after)
            assert relative_rms(talk(context), talk(fresh)) < 1e-3
            assert context.detach() == OK
            assert relative_rms(talk(context), without) < 1e-3
            assert relative_rms(half, without) > 1e-2
    print(len(cuts))


def assert_attached(context: Context, cut: int) -> None:
    assert context.attach(f"k={cut},drop=0.5,score=random7") == OK, last_error()


def talk(context: Context) -> np.ndarray:
    context.clear()
    rows = np.random.default_rng(0).normal(size=(N, random_gguf.WIDTH)).astype(np.float32)
    assert context.tokens([1, 2], 0, logits=False) == 0
    assert context.picture(rows, 2) == 0
    assert context.tokens([5, 6, 7], 2 + N) == 0
    logits = context.logits()
    assert logits is not None
    return logits
