"""Reduced pictures in the language model: every token where it was, against one NumPy pass over the same rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import pyfastv
from pyfastv import _native

import random_mmproj
from masked_reference import Part, Reference, picture, picture_2d, relative_rms, text
from random_mmproj import FAMILIES, SPECIAL_TOKENS

IMAGE = np.random.default_rng(5).integers(0, 256, (168, 224, 3), dtype=np.uint8)
AFTER = [70, 80, 90]
SPECS = ["pool,window=2", "stride,keep=20", "merge,keep=0.5", "divprune,keep=15"]


def token(name: str) -> int:
    return 3 + 256 + list(SPECIAL_TOKENS).index(name)


# What mtmd writes around a picture, and whether its tokens have places in two dimensions.
AROUND = {
    "LLaVA": ([1], [], False),
    "Qwen2-VL": ([1, token("<|vision_start|>")], [token("<|vision_end|>")], True),
    "Qwen3-VL": ([1, token("<|vision_start|>")], [token("<|vision_end|>")], True),
}


@dataclass
class Case:
    name: str
    runner: pyfastv.Runner
    reference: Reference

    def prefill(self, spec: str | None, *, fastv: str | None = None) -> np.ndarray:
        """The logits behind the picture, what comes behind it, and AFTER."""
        self.runner.set_fastv(fastv)
        self.runner.set_reduce(spec)
        engine = self.runner._engine
        engine.reset()
        engine.prefill(engine.media_marker, [IMAGE], ["picture"], None, True, 8, [0])
        for token in AFTER:
            engine.feed(token)
        return engine.logits()


@pytest.fixture(scope="module", params=AROUND)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    model, mmproj = random_mmproj.write_pair(tmp_path_factory.mktemp("reduce"), request.param)
    options = {"n_ctx": 512, "flash_attn": False, "type_k": "f32", "type_v": "f32"}
    with pyfastv.Runner(model, mmproj, fastv=None, n_threads=1, **options) as runner:
        yield Case(request.param, runner, Reference(Path(model)))


def expected(case: Case, spec: str) -> np.ndarray:
    before, behind, is_2d = AROUND[case.name]
    (nx, ny) = FAMILIES[case.name].grids[0]
    rows = case.runner._engine.embed(IMAGE, "picture")[0]
    made = _native.reduce(rows, spec, grids=[(nx, ny)])
    start = len(before)
    whole = picture_2d(rows, start, nx) if is_2d else picture(rows, start)
    part = Part(made["embeddings"], whole.positions[:, made["place"]])
    if is_2d:
        part.positions[3] = 0
    end = start + (max(nx, ny) if is_2d else nx * ny)  # as if all were there
    return case.reference.run([text(before, 0), part, text([*behind, *AFTER], end)]).logits


@pytest.mark.parametrize("spec", SPECS)
def test_reduced_tokens_keep_their_places(case: Case, spec: str) -> None:
    found = case.prefill(spec)
    assert relative_rms(found, expected(case, spec)) < 2e-3
    renumbered = case.prefill(f"{spec},renumber")
    assert relative_rms(renumbered, expected(case, spec)) > 1e-2


def test_keeping_all_is_off_to_the_bit(case: Case) -> None:
    off = case.prefill(None)
    for spec in (
        "stride,keep=1000",
        "divprune,keep=1000",
        "evs,drop=0",
        "pool,window=1",
        "stride,keep=1000,renumber",
    ):
        if spec.endswith("renumber") and AROUND[case.name][2]:
            continue  # M-RoPE: one position a token is not what off has
        np.testing.assert_array_equal(case.prefill(spec), off)


def test_off_is_off_again(case: Case) -> None:
    off = case.prefill(None)
    assert not np.array_equal(case.prefill("stride,keep=5"), off)
    np.testing.assert_array_equal(case.prefill(None), off)


def test_stages_without_drop_are_no_stages_behind_a_reducer(case: Case) -> None:
    spec, layer = "divprune,keep=20", 3 if case.name == "Qwen3-VL" else 2
    plain = case.prefill(spec)
    staged = case.prefill(spec, fastv=f"fastv,k={layer},drop=0")
    assert relative_rms(staged, plain) < 1e-5


def test_batches_smaller_than_the_picture_change_nothing(case: Case, tmp_path: Path) -> None:
    model, mmproj = random_mmproj.write_pair(tmp_path, case.name)
    options = {
        "n_ctx": 512,
        "flash_attn": False,
        "type_k": "f32",
        "type_v": "f32",
        "n_batch": 7,
        "n_ubatch": 5,
    }
    with pyfastv.Runner(model, mmproj, fastv=None, n_threads=1, **options) as runner:
        small = Case(case.name, runner, case.reference).prefill("stride,keep=20")
    assert relative_rms(small, case.prefill("stride,keep=20")) < 1e-4
