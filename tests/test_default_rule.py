"""Numbers alone, a layer and a share, are the recommended rule at every door; FastV's own is asked for by its name."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from pyfastv import Cut, FastV, Recommended, Schedule, _native
from pyfastv.engine.c_structures import FastvParams
from pyfastv.serve.generation import Generation
from pyfastv.settings.setting import Setting

from c_api import OK, fastv


def values(params: FastvParams) -> tuple[Any, ...]:
    cuts = [tuple(getattr(cut, name) for name, *_ in cut._fields_) for cut in params.cuts[: params.n_cuts]]
    return cuts, params.recall, params.n_cells


def parsed(text: str) -> tuple[Any, ...]:
    """By the function that C programs and ``LLAMA_FASTV`` have."""
    params = FastvParams()
    assert fastv.pyfastv_parse(text.encode(), 12, ctypes.byref(params)) == OK
    return values(params)


def of_http(value: Any) -> Schedule | None:
    return Setting().but(**Generation(fastv=value)._setting_options()).fastv


@pytest.mark.parametrize(
    ("numbers", "schedule"),
    [("k=4,drop=0.75", Recommended(4, 0.75)), ("k=25%", Recommended("25%")), ("drop=0", Recommended(drop=0))],
)
def test_numbers_alone_are_of_the_recommended_rule(numbers: str, schedule: Schedule) -> None:
    assert Setting.parse(f"turbo + {numbers}").fastv == schedule
    assert of_http(numbers) == schedule
    assert parsed(numbers) == parsed(f"recommended,{numbers}") != parsed(f"fastv,{numbers}")


def test_numbers_as_fields_of_a_request_are_of_the_recommended_rule() -> None:
    assert of_http({"k": 4, "drop": 0.75}) == Recommended(4, 0.75)
    assert of_http({}) == Recommended()
    assert of_http({"k": 4, "drop": 0.75, "score": "last"}) == FastV(4, 0.75)
    assert of_http({"k": 4, "weigh": True}) == FastV(4, weigh=True)


def test_a_cut_in_python_is_the_same_fields_as_text() -> None:
    assert Schedule([Cut(4, 0.75)]) == Recommended(4, 0.75)
    assert Schedule([Cut(4, 0.75, score="last")]) == FastV(4, 0.75)
    fields: dict[str, dict[str, Any]] = {
        "score=question-mean": {"score": "question-mean"},
        "pick=cover": {"pick": "cover"},
        "weigh": {"weigh": True},
        "merge": {"merge": True},
    }
    for text, named in fields.items():
        assert Schedule([Cut(4, 0.75, **named)]) == Schedule.parse(f"k=4,drop=0.75,{text}")


def test_c_s_defaults_are_what_a_text_leaves_out() -> None:
    """At every cut, so that a program that sets two layers and shares has the same rule at both."""
    params = FastvParams()
    assert fastv.pyfastv_default_params(ctypes.byref(params), ctypes.sizeof(params)) == OK
    assert values(params) == parsed("recommended")
    params.n_cuts, params.cuts[0].layer, params.cuts[1].layer = 2, 3, 6
    assert values(params) == parsed("k=3;k=6")


def test_each_of_several_cuts_is_for_itself() -> None:
    schedule = Schedule.parse("k=2;k=6,drop=0.75,score=last;k=8,drop=0.75,pick=window4")
    assert schedule.cuts == (*Recommended().cuts, *FastV(6, 0.75).cuts, Cut(8, 0.75, "last", "window4"))
    assert Schedule.parse(schedule.spec()) == schedule


def test_fastv_s_name_is_its_rule() -> None:
    """Its ranks alone choose, where the recommended rule would compare rows."""
    scores = np.array([3, 1, 4, 1, 5, 9, 2, 6], np.float32)
    assert _native.choose(scores, "fastv,drop=0.5").tolist() == [2, 4, 5, 7]
    assert Schedule.parse("fastv,k=3,drop=0.25,recall=0") == FastV(3, 0.25, recall=0)
