"""Kept sets and logits against PyTorch (tests/reference): layers, scores, choice and masks written twice.

The reference ran on the bundled files' weights as f32, which are written again here. The unpruned case fails without
third_party/patches/0001: with CLS behind the patches, every picture is read one patch off.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import pyfastv

from compare import MAX_RMS, compare, relative_rms
from golden import GoldenCase, GoldenQuestion, read_golden

REFERENCE = Path(__file__).parent / "reference"
QUESTIONS = read_golden(REFERENCE / "golden_bundle.npz").questions

# the unpruned case of every question, and the settings in turn
CASES = [
    (question, case)
    for i, question in enumerate(QUESTIONS)
    for j, case in enumerate(question.cases)
    if case.k is None or j % len(QUESTIONS) == i
]


@pytest.mark.parametrize(
    ("question", "case"), CASES, ids=[f"{question.id}-{case.name}" for question, case in CASES]
)
def test_kept_set_scores_and_logits(
    exact: pyfastv.Runner, question: GoldenQuestion, case: GoldenCase
) -> None:
    result = compare(exact, question, case)
    assert result.passes, result


def test_every_setting_is_computed() -> None:
    assert {case.name for _, case in CASES} == {case.name for case in QUESTIONS[0].cases}


def test_the_reference_prunes() -> None:
    """Its logits differ from the unpruned ones by far more than the tolerance, or the test above showed nothing."""
    for question in QUESTIONS:
        off, *pruned = question.cases
        for case in pruned:
            assert relative_rms(case.logits_first, off.logits_first) > 3 * MAX_RMS, case.name
