"""Kept sets and logits against PyTorch (tests/reference): layers, scores, choice and masks written twice.

The reference ran on the bundled files' weights as f32, which are written again here; flash attention is off and the
KV cache is f32, so that rounding is all that differs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pyfastv
from pyfastv import models

REFERENCE = Path(__file__).parent / "reference"
sys.path.insert(0, str(REFERENCE))

from dequantize import dequantize  # noqa: E402
from golden import GoldenCase, GoldenQuestion, read_golden  # noqa: E402

QUESTIONS = read_golden(REFERENCE / "golden_bundle.npz").questions
SETTINGS = [case.name for case in QUESTIONS[0].cases]

MAX_RMS = 1e-3  # relative, of logits
N_STEPS = 32


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pyfastv.Runner]:
    """The bundled model in f32."""
    folder = tmp_path_factory.mktemp("f32")
    dequantize(models.bundled_model(), folder / "model.gguf")
    dequantize(models.bundled_mmproj(), folder / "mmproj.gguf")
    with pyfastv.Runner(
        folder / "model.gguf",
        folder / "mmproj.gguf",
        n_ctx=1024,
        flash_attn=False,
        type_k="f32",
        type_v="f32",
    ) as runner:
        yield runner


def relative_rms(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))


def prefill(runner: pyfastv.Runner, question: GoldenQuestion, case: GoldenCase) -> None:
    engine = runner._engine
    runner.set_fastv(None if case.k is None else pyfastv.FastV(case.k, case.drop))
    image = pyfastv.load_image(REFERENCE / question.image)
    prompt = question.prompt.replace("<image>", engine.media_marker)
    engine.prefill(prompt, [image], None, True, N_STEPS)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("question", QUESTIONS, ids=[question.id for question in QUESTIONS])
def test_kept_set_scores_and_logits(exact: pyfastv.Runner, question: GoldenQuestion, setting: str) -> None:
    case = next(case for case in question.cases if case.name == setting)
    engine = exact._engine
    prefill(exact, question, case)

    if case.k is not None:
        np.testing.assert_array_equal(engine.kept(), case.kept)
        np.testing.assert_allclose(engine.scores(), question.scores[case.k], rtol=5e-3, atol=2e-6)
    assert relative_rms(engine.logits(), case.logits_first) < MAX_RMS

    for token in case.tokens[:-1]:
        engine.feed(int(token))
    assert relative_rms(engine.logits(), case.logits_last) < MAX_RMS


def test_the_reference_prunes(exact: pyfastv.Runner) -> None:
    """Its logits differ from the unpruned ones by far more than the tolerance, or the test above showed nothing."""
    for question in QUESTIONS:
        off, *pruned = question.cases
        for case in pruned:
            assert relative_rms(case.logits_first, off.logits_first) > 3 * MAX_RMS, case.name
