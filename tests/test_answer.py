"""The report: complete, finite, and ready for JSON."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any

import pytest
from conftest import REPORT, engine_report

from pyfastv import Answer, FastV, PyramidDrop, Report, Schedule, _native
from pyfastv.settings.setting import Setting


def report(fastv: Schedule | None = None, **changes: Any) -> Report:
    return Report.of(engine_report(**changes), n_layer=12, image_decode_ms=2.0, setting=Setting(fastv))


def test_every_number_of_the_engine_is_told() -> None:
    """A new one is a line of the native struct, and one here."""
    of_engine = {name for name in dir(_native.RunReport) if not name.startswith("_")}
    assert of_engine < {field.name for field in fields(Report)}


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


@pytest.mark.parametrize(
    ("first_layers", "in_stage", "share"),
    [
        ([0], [576], 1.0),
        ([0, 2], [576, 288], (2 + 10 * 0.5) / 12),
        ([0, 2, 6], [576, 288, 96], (2 + 4 * 0.5 + 6 / 6) / 12),
        ([0, 6], [576, 0], 0.5),
        ([0, 2], [0, 0], None),
    ],
)
def test_the_retained_share_is_the_mean_over_the_layers(
    first_layers: list[int], in_stage: list[int], share: float | None
) -> None:
    made = report(visual_tokens=in_stage[0], first_layers=first_layers, visual_tokens_in_stage=in_stage)
    assert made.retained_share == pytest.approx(share)
    assert made.visual_tokens_kept == in_stage[-1]


def test_saved_bytes_are_counted_against_stock() -> None:
    assert report().kv_bytes_saved == (500 - 300, 3500 - 3000)


def test_dict_survives_json() -> None:
    made = report(FastV(3, 0.25)).to_dict()
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    assert made["fastv"] == "fastv,k=3,drop=0.25"
    assert made["kv_bytes_saved"] == {"used": 200, "allocated": 500}
    assert set(REPORT) < set(made)
    assert report().to_dict()["fastv"] is None


def test_text_tells_the_counts_and_the_rule() -> None:
    assert "576, 288 kept (FastV k=2, drop=0.5); 58% a layer" in str(report(FastV()))
    assert "288 kept, 9 recalled (PyramidDrop" in str(report(PyramidDrop(), recalled_tokens=9))
    assert "(off)" in str(report())
    assert "0 encoded in 0 ms, 1 from the cache" in str(
        report(encode_ms=0.0, pictures_encoded=0, pictures_from_cache=1)
    )


def test_text_without_a_picture() -> None:
    made = report(visual_tokens=0, patches=0, visual_tokens_in_stage=[0, 0], stage0_ms=0.0)
    assert "0, 0 kept (off)\n" in str(made)
    assert "first cut" not in str(made)


def test_an_answer_prints_as_its_text() -> None:
    assert str(Answer("It is 9:10.", report(), "stop")) == "It is 9:10."


def test_an_answer_is_ready_for_json() -> None:
    answer = Answer("It is 9:10.", report(), "stop")
    told = json.loads(json.dumps(answer.to_dict(), allow_nan=False))
    assert (told["text"], told["finish_reason"]) == ("It is 9:10.", "stop")
    assert told["report"] == json.loads(json.dumps(answer.report.to_dict()))
