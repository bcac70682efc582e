"""Scores of the question's tokens, windows and even spacing against PyTorch and NumPy (tests/reference/rules.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pyfastv
from pyfastv import _native

from compare import MAX_RMS, SCORE_TOLERANCE, prefill, relative_rms
from rules import RuleCase, read_rules

CASES = read_rules(Path(__file__).parent / "reference" / "golden_rules.npz")


def pick_of(case: RuleCase) -> str:
    return f"window{case.window}" if case.pick == "window" else case.pick


@pytest.mark.parametrize("case", CASES, ids=[f"{case.question}-{case.name}" for case in CASES])
def test_kept_set_scores_and_logits(exact: pyfastv.Runner, case: RuleCase) -> None:
    engine = exact._engine
    prefill(exact, pyfastv.FastV(case.k, case.drop, case.score, pick_of(case)), case.prompt, case.image)

    np.testing.assert_allclose(engine.scores(), case.scores, **SCORE_TOLERANCE)
    changed = set(engine.kept().tolist()) ^ set(case.kept.tolist())
    assert len(engine.kept()) == len(case.kept)
    # where two scores at a cut differ by less than rounding, either choice is right
    assert len(changed) <= (4 if case.fragile else 0)
    if not changed:
        assert relative_rms(engine.logits(), case.logits_first) < MAX_RMS


@pytest.mark.parametrize("case", CASES, ids=[f"{case.question}-{case.name}" for case in CASES])
def test_the_choice_alone(case: RuleCase) -> None:
    """The reference's scores in, the reference's indices out."""
    np.testing.assert_array_equal(_native.choose(case.scores, case.drop, pick_of(case)), case.kept)
