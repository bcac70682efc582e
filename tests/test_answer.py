"""The report: complete, finite, and ready for JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from conftest import REPORT

from pyfastv import Answer, FastV, Report


def report(fastv: FastV | None = None, **changes: Any) -> Report:
    return Report.of({**REPORT, **changes}, image_decode_ms=2.0, fastv=fastv)


def test_rates_are_counts_over_times() -> None:
    made = report()
    assert made.prefill_ms == 50.0
    assert made.prefill_tokens_per_second == pytest.approx(500 / 0.05)
    assert made.tokens_per_second == pytest.approx(4 / 0.008)


def test_rates_without_work_are_zero() -> None:
    nothing = dict.fromkeys(("full_ms", "stage0_ms", "choose_ms", "later_ms", "generate_ms"), 0.0)
    assert report(**nothing).tokens_per_second == 0.0
    assert report(**nothing).prefill_tokens_per_second == 0.0


def test_nothing_is_nan() -> None:
    made = report(encode_ms=math.nan, generate_ms=math.inf, later_ms=math.nan)
    assert all(math.isfinite(value) for value in made.to_dict().values() if isinstance(value, float))


def test_dict_survives_json() -> None:
    made = report(FastV(3, 0.25)).to_dict()
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    assert made["fastv"] == {"k": 3, "drop": 0.25, "score": "last", "pick": "top-k"}
    assert set(REPORT) < set(made)
    assert report().to_dict()["fastv"] is None


def test_text_tells_the_counts_and_the_rule() -> None:
    assert "576, 288 kept (FastV k=2, drop=0.5)" in str(report(FastV()))
    assert "(off)" in str(report())


def test_an_answer_prints_as_its_text() -> None:
    assert str(Answer("It is 9:10.", report(), "stop")) == "It is 9:10."
