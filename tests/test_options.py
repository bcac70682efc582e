"""Values that are refused, with the value in the message; values that are taken."""

from __future__ import annotations

import dataclasses
import math
import pickle
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfastv import (
    VTW,
    Cut,
    Error,
    FastV,
    Feather,
    OptionError,
    PyramidDrop,
    Recommended,
    Sampling,
    Schedule,
    ZipVL,
    _native,
)
from pyfastv.settings.presets import PRESETS, to_schedule
from pyfastv.settings.schedule import SCORES

# schedules

EVERY_FIELD = (
    "k=2,drop=0.25,score=random7,pick=grid3,weigh,merge;k=50%,drop=1,score=last,recall=0.5,cells=2048"
)
TWO_CUTS = "k=2,drop=0.5,merge;k=4,drop=0.5,score=last"


def test_fastv_defaults_are_the_papers_example() -> None:
    assert FastV() == FastV(k=2, drop=0.5) == Schedule([Cut(2, 0.5, "last", "top-k", False)])
    assert (FastV(3, 0.25).k, FastV(3, 0.25).drop) == (3, 0.25)
    assert FastV(2.0, 0.5) == FastV(2, 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [0, -1, 2.5, "2", "101%", "%", "", None, True, math.nan, 2**31])
def test_a_cut_refuses_a_layer(k: Any) -> None:
    with pytest.raises(OptionError, match=r"k, the layer of a cut, must be an integer|^k = ") as caught:
        Cut(k, 0.5)
    assert str(k) in str(caught.value)
    assert isinstance(caught.value, (Error, ValueError))


@pytest.mark.parametrize("drop", [-0.1, 1.5, math.nan, math.inf, "0.5", None, True, [0.5]])
def test_a_cut_refuses_drop(drop: Any) -> None:
    with pytest.raises(
        OptionError, match=r"drop must be|^drop = .* is out of range: 0 <= drop <= 1"
    ) as caught:
        Cut(2, drop)
    assert repr(drop) in str(caught.value)


@pytest.mark.parametrize(
    "score", ["", "question", "random-1", "random4294967296", "randomly", "LAST", 0, ["last"]]
)
def test_a_cut_refuses_a_score(score: Any) -> None:
    with pytest.raises(OptionError, match="score") as caught:
        Cut(2, 0.5, score=score)
    assert str(score) in str(caught.value)


@pytest.mark.parametrize(
    "pick",
    [
        "",
        "topk",
        "window",
        "window0",
        "window-1",
        "window4x",
        "grid",
        "grid0",
        "mass",
        "mass0",
        "mass1.1",
        "massx",
        4,
    ],
)
def test_a_cut_refuses_a_pick(pick: Any) -> None:
    with pytest.raises(OptionError, match=r"pick = |pick must be|window = 0|stride = 0|mass = ") as caught:
        Cut(2, 0.5, pick=pick)
    value = str(pick)
    number = value.lstrip("abcdefghijklmnopqrstuvwxyz")
    assert value in str(caught.value) or f"= {number} is out of range" in str(caught.value)


@pytest.mark.parametrize("drop", [0, 1, 0.999, np.float32(0.5)])
def test_a_cut_takes_drop_as_float(drop: Any) -> None:
    assert type(Cut(2, drop).drop) is float


def test_a_cut_takes_numpy_integers_as_int() -> None:
    assert type(Cut(np.int64(3), 0.5).layer) is int  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"cuts": []}, "1 to 8 cuts; got 0"),
        ({"cuts": [Cut(k + 1, 0.5) for k in range(9)]}, "1 to 8 cuts; got 9"),
        ({"cuts": "k=2"}, "cuts must be Cuts"),
        ({"cuts": [Cut(2, 0.5), 4]}, "cuts must be Cuts"),
        ({"cuts": [Cut(4, 0.5), Cut(4, 0.75)]}, "k = 4 follows k = 4: every cut must be at a later layer"),
        ({"cuts": [Cut("50%", 0.5), Cut("25%", 0.75)]}, "k = 25% follows k = 50%"),
        ({"cuts": [Cut(2, 0.75), Cut(4, 0.5)]}, "drop = 0.5 follows drop = 0.75"),
        ({"recall": -0.1}, "recall must be"),
        ({"recall": 1.1}, "recall must be"),
        ({"recall": "all"}, "recall must be"),
        ({"cells": 0}, "cells"),
        ({"cells": 1.5}, "cells"),
        ({"cells": "many"}, "cells .* got 'many'"),
    ],
)
def test_a_schedule_refuses(values: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        Schedule(**{"cuts": [Cut(2, 0.5)], **values})


def test_recall_takes_booleans() -> None:
    assert FastV(recall=False).recall == 0.0
    assert FastV(recall=True) == FastV()


def test_a_spec_says_its_rule_as_far_as_it_differs_from_fastv() -> None:
    assert FastV().spec() == "fastv,k=2,drop=0.5"
    assert FastV("25%", 0.75, recall=0).spec() == "fastv,k=25%,drop=0.75,recall=0"
    assert FastV(4, 0.75, "question-max", "window4", merge=True, recall=0, cells="auto").spec() == (
        "k=4,drop=0.75,score=question-max,pick=window4,merge,recall=0,cells=auto"
    )
    assert Schedule.parse(EVERY_FIELD).spec() == EVERY_FIELD
    assert Schedule.parse(" k = 2 , merge ; k=4 , score=last, cells=0 ").spec() == TWO_CUTS


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no schedule: one of recommended, "),
        ("k=2;", "is empty; fields: k="),
        ("speed=9", '"speed=9" is none of k='),
        ("merge=1", '"merge=1" is none of'),
        ("k=2,k=3", '"k=3": k is given twice'),
        ("recall=0;k=4,recall=0", "recall is given twice"),
        ("k=two", 'k = "two" is not understood; a layer'),
        ("k=0", "k = 0 is out of range"),
        ("drop=half", 'drop = "half" is not understood; a number'),
        ("drop=nan", 'drop = "nan" is not understood; a number'),
        ("drop=1.5", "drop = 1.5 is out of range"),
        ("recommended;k=4", "recommended is a whole schedule"),
        ("pyramiddrop,drop=0.5", "pyramiddrop has 3 cuts"),
        ("k=2,recommended", '"recommended" is none of'),
        ("cells=-1", "cells"),
        ("k=2;k=2", "k = 2 follows k = 2"),
    ],
)
def test_a_spec_that_is_refused(text: str, words: str) -> None:
    with pytest.raises(OptionError, match=re.escape(words)):
        Schedule.parse(text)


CUTS = st.builds(
    Cut,
    st.integers(1, 11) | st.integers(1, 99).map("{}%".format),
    st.floats(0, 1, width=32),
    st.sampled_from([*SCORES, "random7"]),
    st.sampled_from(["top-k", "window4", "uniform", "grid3", "mass0.95", "cover"]),
    st.booleans(),
)
SCHEDULES = st.builds(
    lambda *values: Schedule([values[0]], *values[1:]),
    CUTS,
    st.floats(0, 1, width=32),
    st.none() | st.just("auto") | st.integers(1, 2**31 - 1),
)


@given(SCHEDULES)
def test_a_spec_is_read_as_the_same_schedule(schedule: Schedule) -> None:
    again = Schedule.parse(schedule.spec())
    assert (
        again.cuts[0].layer,
        again.cuts[0].score,
        again.cuts[0].pick,
        again.cuts[0].weigh,
        again.cuts[0].merge,
        again.cells,
    ) == (
        schedule.cuts[0].layer,
        schedule.cuts[0].score,
        schedule.cuts[0].pick,
        schedule.cuts[0].weigh,
        schedule.cuts[0].merge,
        schedule.cells,
    )
    for value, other in ((again.recall, schedule.recall), (again.cuts[0].drop, schedule.cuts[0].drop)):
        assert np.float32(value) == np.float32(other)
    assert again.spec() == schedule.spec()


@given(SCHEDULES)
def test_llama_cpp_reads_the_same_from_a_spec(schedule: Schedule) -> None:
    cut = schedule.cuts[0]
    full = Schedule.parse(_native.check_schedule(schedule.spec(), 100))
    layer = cut.layer if isinstance(cut.layer, int) else int(cut.layer[:-1])  # 100 layers: a percent is one
    seeded = "random0" if cut.score == "random" else cut.score
    expected = (layer, np.float32(cut.drop), seeded, cut.pick, cut.merge)
    read = full.cuts[0]
    assert (read.layer, np.float32(read.drop), read.score, read.pick, read.merge) == expected
    assert (np.float32(full.recall), full.cells) == (np.float32(schedule.recall), schedule.cells)


def test_what_a_spec_leaves_out_is_the_same_in_llama_cpp() -> None:
    full = _native.check_schedule("k=2", 12)
    assert full == "k=2,drop=0.5,score=question-max,pick=cover,weigh,recall=0.025,cells=0"
    assert Schedule.parse(full) == Schedule.parse("k=2") == Recommended()


@pytest.mark.parametrize("spec", ["k=12", "k=100", "k=50%;k=6", "k=6;k=50%"])
def test_a_schedule_that_a_model_has_no_layers_for(spec: str) -> None:
    with pytest.raises(OptionError, match="k"):
        _native.check_schedule(Schedule.parse(spec).spec(), 12)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
@pytest.mark.parametrize("n_layer", [12, 28, 32])
def test_presets_fit_models(preset: type[Schedule], n_layer: int) -> None:
    made = preset()
    assert Schedule.parse(made.spec()) == made
    _native.check_schedule(made.spec(), n_layer)


def test_python_has_a_class_for_every_preset() -> None:
    assert tuple(PRESETS) == _native.PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_s_name_is_its_schedule_in_both_languages(name: str) -> None:
    """And it takes fields, which differ from it."""
    made = PRESETS[name]()
    assert Schedule.parse(name) == Schedule.parse(f" {name.upper()} ") == to_schedule(name) == made
    assert _native.check_schedule(name, 32) == _native.check_schedule(made.spec(), 32)
    assert Schedule.parse(f"{name},recall=0.5,cells=auto") == Schedule(made.cuts, 0.5, "auto")


def test_fields_of_a_preset() -> None:
    assert Schedule.parse("recommended,k=4,drop=0.75") == Recommended(4, 0.75)
    assert Schedule.parse("fastv, k=25%, weigh") == FastV("25%", weigh=True)
    assert Schedule.parse("zipvl,pick=mass0.9,k=3,drop=0.8") == ZipVL(0.9, 3, 0.8)


def test_presets_are_what_their_papers_say() -> None:
    pyramid = [(cut.layer, cut.drop, cut.score, cut.pick) for cut in PyramidDrop().cuts]
    assert pyramid == [
        ("25%", 0.5, "last", "top-k"),
        ("50%", 0.75, "last", "top-k"),
        ("75%", 0.875, "last", "top-k"),
    ]
    assert [(cut.score, cut.pick) for cut in Feather().cuts] == [
        ("last-no-rope", "grid3"),
        ("last-no-rope", "top-k"),
    ]
    assert (VTW(16).cuts, VTW().cuts[0].layer) == ((Cut(16, 1.0, score="none"),), "50%")
    assert ZipVL(0.9, 3, 0.8).cuts == (Cut(3, 0.8, score="question-mean", pick="mass0.9"),)


def test_schedules_are_values() -> None:
    assert Schedule.parse("fastv,k=2,drop=0.5") == FastV()
    assert hash(Schedule.parse("fastv,k=2,drop=0.5")) == hash(FastV())
    assert FastV() != Recommended()
    assert FastV() != "fastv,k=2,drop=0.5"
    assert pickle.loads(pickle.dumps(Recommended(4, 0.75))) == Recommended(4, 0.75)
    assert eval(repr(Recommended())) == Recommended()


def test_schedules_print_short() -> None:
    assert str(FastV()) == "FastV k=2, drop=0.5"
    assert str(Schedule.parse("fastv,k=4")) == "fastv, k=4, drop=0.5"
    assert str(Schedule.parse("k=2,weigh;k=6,merge")) == "k=2, drop=0.5, weigh; k=6, drop=0.5, merge"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("off", None),
        ("PyramidDrop", PyramidDrop()),
        ("recommended", Recommended()),
        ("k=4,drop=0.75", Recommended(4, 0.75)),
        ("fastv,k=4,drop=0.75", FastV(4, 0.75)),
        (FastV(3), FastV(3)),
    ],
)
def test_a_schedule_by_name_or_text(value: Any, expected: Schedule | None) -> None:
    assert to_schedule(value) == expected


@pytest.mark.parametrize("value", [(2, 0.5), False, 2, {"k": 2}, "fast", ""])
def test_what_is_no_schedule_is_refused_with_the_choices(value: Any) -> None:
    with pytest.raises(OptionError, match="pyramiddrop") as caught:
        to_schedule(value)
    assert (f'"{value}"' if isinstance(value, str) else repr(value)) in str(caught.value)


def test_options_are_frozen() -> None:
    for options, name in (
        (Cut(2, 0.5), "drop"),
        (FastV(), "cuts"),
        (FastV(), "recall"),
        (Sampling(), "top_k"),
    ):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(options, name, 1)


# sampling


def test_sampling_defaults() -> None:
    expected = {
        "max_tokens": None,
        "temperature": 0.0,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.05,
        "typical_p": 1.0,
        "repeat_penalty": 1.0,
        "repeat_last_n": 64,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "seed": None,
        "stop": (),
        "grammar": None,
        "logit_bias": (),
        "ignore_eos": False,
        "skip_special_tokens": True,
    }
    assert dataclasses.asdict(Sampling()) == expected


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_tokens", [-2, 1.5, True, "5"]),
        ("temperature", [-0.1, math.nan, math.inf, "1", None, True]),
        ("top_k", [-1, 1.5, None]),
        ("top_p", [-0.1, 1.1, math.nan, None]),
        ("min_p", [-0.1, 1.1, math.nan]),
        ("typical_p", [-0.1, 1.1, math.nan]),
        ("repeat_penalty", [0.0, -1.0, math.nan, math.inf]),
        ("repeat_last_n", [-2, 0.5]),
        ("frequency_penalty", [math.nan, math.inf, "a"]),
        ("presence_penalty", [math.nan, -math.inf, None]),
        ("seed", [-1, 2**32, 0.5, True]),
        ("stop", ["", ["a", ""], [1], b"a", 5, {"a": 1}]),
        ("grammar", ["", "  ", 5]),
        ("logit_bias", ["ab", 5]),
        ("ignore_eos", [1, None, "yes"]),
        ("skip_special_tokens", [0, None, "no"]),
    ],
)
def test_sampling_refuses_values_outside_their_range(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(OptionError, match=name) as caught:
            Sampling(**{name: value})
        assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("max_tokens", -1, None),
        ("max_tokens", -1.0, None),
        ("max_tokens", 0, 0),
        ("max_tokens", 1, 1),
        ("max_tokens", 5.0, 5),
        ("max_tokens", 2**70, 2**31 - 1),
        ("top_k", 40.0, 40),
        ("seed", np.float32(42), 42),
        ("top_k", 0, 0),
        ("top_p", 1, 1.0),
        ("repeat_last_n", -1, -1),
        ("seed", 2**32 - 1, 2**32 - 1),
        ("stop", None, ()),
        ("stop", "END", ("END",)),
        ("stop", ["a", "b"], ("a", "b")),
        ("grammar", 'root ::= "a"', 'root ::= "a"'),
        ("logit_bias", {5: 1, "6": -100.0}, ((5, 1.0), (6, -100.0))),
        ("logit_bias", [(5, 1)], ((5, 1.0),)),
        ("logit_bias", None, ()),
    ],
)
def test_sampling_takes_values_at_the_edges(name: str, value: Any, kept: Any) -> None:
    assert getattr(Sampling(**{name: value}), name) == kept


@pytest.mark.parametrize(
    ("biases", "words"),
    [
        ({"the": 1}, "a token must be an integer.*'the'"),
        ({-1: 1}, "a token must be .*-1"),
        ({True: 1}, "a token must be .*True"),
        ({5: math.nan}, "from -1e9 to 1e9; got nan"),
        ({5: 1e10}, "from -1e9 to 1e9; got 1"),
        ({5: "high"}, "from -1e9 to 1e9; got 'high'"),
    ],
)
def test_biases_are_numbers_of_tokens(biases: Any, words: str) -> None:
    with pytest.raises(OptionError, match=f"logit_bias.*{words}"):
        Sampling(logit_bias=biases)


def test_an_unknown_sampling_keyword_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="top_q"):
        Sampling(top_q=1)  # type: ignore[call-arg]
