"""The bundled, quantized model on thirty questions of the bench, beside PyTorch's answers with the fp16 weights.

The whole bench is run by benchmarks/accuracy.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pyfastv

from scoring import is_right

SLICE = Path(__file__).parent / "bench_slice"
QUESTIONS = [json.loads(line) for line in (SLICE / "questions.jsonl").read_text().splitlines()]

RULES = {"off": None, "2:0.5": pyfastv.FastV(2, 0.5), "4:0.5": pyfastv.FastV(4, 0.5)}


@pytest.mark.parametrize("setting", RULES)
def test_as_many_right_answers_as_the_reference(runner: pyfastv.Runner, setting: str) -> None:
    """Quantization may turn two of thirty either way."""
    before = runner.fastv
    runner.set_fastv(RULES[setting])
    right = expected = 0
    for question in QUESTIONS:
        answer = runner.ask(SLICE / question["image"], question["question"], max_tokens=96)
        right += is_right(question, answer.text)
        expected += is_right(question, question["reference"][setting])
    runner.set_fastv(before)
    assert abs(right - expected) <= 2, f"{right} right, the reference has {expected} of {len(QUESTIONS)}"
