"""The language of schedules: pyfastv_parse() in native/include/pyfastv.h, as LLAMA_FASTV and the runner take it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyfastv
from pyfastv._native import check_schedule

N_LAYER = 32
REST = ",recall=0.025,cells=0"
DEFAULT = "score=question-max,pick=cover,weigh"
SHARES = st.floats(0, 1, width=32, allow_subnormal=False)  # libc++ refuses them
SPACES = st.sampled_from(["", " ", "\t", "  \n"])


# --- what is understood


@pytest.mark.parametrize(
    ("spec", "full"),
    [
        ("k=2", f"k=2,drop=0.5,{DEFAULT}"),
        ("k=3", f"k=3,drop=0.5,{DEFAULT}"),
        ("k=25%", f"k=8,drop=0.5,{DEFAULT}"),
        ("k=12.5%", f"k=4,drop=0.5,{DEFAULT}"),
        ("drop=0.9", f"k=2,drop=0.9,{DEFAULT}"),
        ("drop=0", f"k=2,drop=0,{DEFAULT}"),
        ("drop=1", f"k=2,drop=1,{DEFAULT}"),
        ("drop=1e-3", f"k=2,drop=0.001,{DEFAULT}"),
        ("fastv", "k=2,drop=0.5,score=last,pick=top-k"),
        ("fastv,k=25%,drop=0.75", "k=8,drop=0.75,score=last,pick=top-k"),
        ("FastV , drop=0", "k=2,drop=0,score=last,pick=top-k"),
        ("score=last", "k=2,drop=0.5,score=last,pick=top-k"),
        ("score=question-mean", "k=2,drop=0.5,score=question-mean,pick=top-k"),
        ("score=question-max", "k=2,drop=0.5,score=question-max,pick=top-k"),
        ("score=all", "k=2,drop=0.5,score=all,pick=top-k"),
        ("score=last-no-rope", "k=2,drop=0.5,score=last-no-rope,pick=top-k"),
        ("score=random", "k=2,drop=0.5,score=random0,pick=top-k"),
        ("score=random7", "k=2,drop=0.5,score=random7,pick=top-k"),
        ("score=random4294967295", "k=2,drop=0.5,score=random4294967295,pick=top-k"),
        ("score=none", "k=2,drop=0.5,score=none,pick=top-k"),
        ("pick=top-k", "k=2,drop=0.5,score=last,pick=top-k"),
        ("pick=window4", "k=2,drop=0.5,score=last,pick=window4"),
        ("pick=window12", "k=2,drop=0.5,score=last,pick=window12"),
        ("pick=uniform", "k=2,drop=0.5,score=last,pick=uniform"),
        ("pick=grid3", "k=2,drop=0.5,score=last,pick=grid3"),
        ("pick=mass0.95", "k=2,drop=0.5,score=last,pick=mass0.95"),
        ("merge", "k=2,drop=0.5,score=last,pick=top-k,merge"),
        ("weigh", "k=2,drop=0.5,score=last,pick=top-k,weigh"),
        ("merge,weigh", "k=2,drop=0.5,score=last,pick=top-k,weigh,merge"),
        ("merge,drop=0.75,k=1", "k=1,drop=0.75,score=last,pick=top-k,merge"),
    ],
)
def test_every_field_of_a_cut(spec: str, full: str) -> None:
    assert check_schedule(spec, N_LAYER) == full + REST


@pytest.mark.parametrize(
    ("spec", "rest"),
    [
        ("k=2,recall=0.25", "recall=0.25,cells=0"),
        ("k=2,recall=0", "recall=0,cells=0"),
        ("k=2,cells=2048", "recall=0.025,cells=2048"),
        ("k=2,cells=0", "recall=0.025,cells=0"),
        ("k=2,cells=auto", "recall=0.025,cells=auto"),
        ("cells=auto,k=2,recall=0.5", "recall=0.5,cells=auto"),
    ],
)
def test_every_field_of_the_schedule(spec: str, rest: str) -> None:
    assert check_schedule(spec, N_LAYER) == f"k=2,drop=0.5,{DEFAULT},{rest}"


def test_several_cuts_each_with_a_rule_of_its_own() -> None:
    spec = "k=2,drop=0.25,pick=grid3; k=50%,score=random7,recall=0.5 ; k=24,drop=1,cells=auto"
    assert check_schedule(spec, N_LAYER) == (
        "k=2,drop=0.25,score=last,pick=grid3;"
        "k=16,drop=0.5,score=random7,pick=top-k;"
        f"k=24,drop=1,{DEFAULT},recall=0.5,cells=auto"
    )


@given(st.integers(2, 200), st.integers(0, 100))
def test_a_share_of_the_layers_is_rounded_and_leaves_one_on_each_side(n_layer: int, percent: int) -> None:
    nearest = (Fraction(n_layer * percent, 100) + Fraction(1, 2)).__floor__()
    k = check_schedule(f"k={percent}%", n_layer).split(",")[0]
    assert k == f"k={min(max(nearest, 1), n_layer - 1)}"


def test_eight_cuts_are_the_most() -> None:
    cuts = [f"k={layer}" for layer in range(1, 10)]
    assert check_schedule(";".join(cuts[:8]), N_LAYER).count(";") == 7
    with pytest.raises(pyfastv.OptionError, match="9 cuts; at most 8"):
        check_schedule(";".join(cuts), N_LAYER)


# --- round trip

SCORES = st.one_of(
    st.sampled_from(["last", "question-mean", "question-max", "all", "last-no-rope", "none"]),
    st.integers(0, 2**32 - 1).map(lambda seed: f"random{seed}"),
)
PICKS = st.one_of(
    st.sampled_from(["top-k", "uniform", "cover"]),
    st.integers(1, 2**31 - 1).map(lambda side: f"window{side}"),
    st.integers(1, 2**31 - 1).map(lambda stride: f"grid{stride}"),
    st.integers(1, 1000).map(lambda share: f"mass{share / 1000}"),
)
MERGE: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [{}, {"merge": None}, {"weigh": None}, {"weigh": None, "merge": None}]
)


@st.composite
def schedules(draw: st.DrawFn) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Fields of the cuts, and of all."""
    layers = sorted(draw(st.sets(st.integers(1, N_LAYER - 1), min_size=1, max_size=8)))
    drops = sorted(draw(st.lists(SHARES, min_size=len(layers), max_size=len(layers), unique=True)))
    cuts = [
        {"k": layer, "drop": drop, "score": draw(SCORES), "pick": draw(PICKS)} | draw(MERGE)
        for layer, drop in zip(layers, drops, strict=True)
    ]
    cells = draw(st.one_of(st.just("auto"), st.integers(0, 2**31 - 1)))
    return cuts, {"recall": draw(SHARES), "cells": cells}


def as_text(fields: dict[str, Any]) -> list[str]:
    return [key if value is None else f"{key}={value}" for key, value in fields.items()]


def as_fields(text: str) -> dict[str, Any]:
    pairs = [field.partition("=") for field in text.split(",")]
    return {key: value if equals else None for key, equals, value in pairs}


def assert_same(read: dict[str, Any], meant: dict[str, Any]) -> None:
    assert list(read) == list(meant)
    for key, value in meant.items():
        if key in ("drop", "recall"):
            assert np.float32(read[key]) == np.float32(value)
        else:
            assert read[key] == (None if value is None else str(value).replace("mass1.0", "mass1"))


@given(schedules(), st.data())
def test_what_is_written_says_what_was_read(
    schedule: tuple[list[dict[str, Any]], dict[str, Any]], data: st.DataObject
) -> None:
    """In any order of the fields, with spaces around them."""
    cuts, of_all = schedule
    at = data.draw(st.integers(0, len(cuts) - 1))
    texts = [as_text(cut | of_all if i == at else cut) for i, cut in enumerate(cuts)]
    spec = ";".join(
        ",".join(data.draw(SPACES) + field + data.draw(SPACES) for field in data.draw(st.permutations(text)))
        for text in texts
    )
    full = check_schedule(spec, N_LAYER)
    assert check_schedule(full, N_LAYER) == full

    *first, last = (as_fields(cut) for cut in full.split(";"))
    for read, meant in zip([*first, last], [*cuts[:-1], cuts[-1] | of_all], strict=True):
        assert_same(read, meant)


# --- what is refused

NO_PERCENT = ["%", "25%%", "%25", "25 %", "-5%", "101%", "nan%"]
NO_WINDOW = ["window", "window-1", "window 4", "window4x", "window1.5", "window9999999999"]
NO_GRID = ["grid", "grid+3", "grid3.0"]
NO_MASS = ["mass", "massive", "mass0.5%", "massnan"]


@pytest.mark.parametrize("spec", [";", "k=2;", ";k=2", "k=2; ;k=4"])
def test_an_empty_cut_is_refused(spec: str) -> None:
    with pytest.raises(pyfastv.OptionError, match="is empty; fields: k=, drop="):
        check_schedule(spec, N_LAYER)


@pytest.mark.parametrize("field", ["x=1", "layer=2", "K=2", "merge=1", "merge=", "=2", "window=4"])
def test_an_unknown_field_is_refused_with_the_choices(field: str) -> None:
    with pytest.raises(pyfastv.OptionError) as caught:
        check_schedule(f"drop=0.5,{field}", N_LAYER)
    assert (
        str(caught.value) == f'"{field}" is none of k=, drop=, score=, pick=, weigh, merge, recall=, cells='
    )


@pytest.mark.parametrize("word", ["Merge", "best", "", " "])
def test_a_word_that_is_no_schedule_is_refused_with_the_names(word: str) -> None:
    with pytest.raises(pyfastv.OptionError) as caught:
        check_schedule(word, N_LAYER)
    assert str(caught.value).startswith(f'"{word}" is no schedule: one of recommended, fastv, ')
    assert str(caught.value).endswith(
        ", off, or fields: k=, drop=, score=, pick=, weigh, merge, recall=, cells="
    )


@pytest.mark.parametrize("spec", ["k=2,", ",k=2", "k=2,,drop=0.5"])
def test_an_empty_field_is_refused(spec: str) -> None:
    with pytest.raises(pyfastv.OptionError, match=r'^"" is none of k='):
        check_schedule(spec, N_LAYER)


@pytest.mark.parametrize(
    "value", ["", "2 3", "two", "2.5", "2x", "0x2", "1e1", "99999999999", "²", *NO_PERCENT]
)
def test_a_malformed_layer_is_refused(value: str) -> None:
    with pytest.raises(pyfastv.OptionError) as caught:
        check_schedule(f"k={value}", N_LAYER)
    message = f'k = "{value}" is not understood; a layer, as 2, or a share of the layers, as 25%'
    assert str(caught.value) == message


@pytest.mark.parametrize("key", ["drop", "recall"])
@pytest.mark.parametrize(
    "value", ["", "0 5", "half", "0.5x", "0.5.5", "50%", "nan", "inf", "0x1p-1", "1e999", "1e"]
)
def test_a_malformed_share_is_refused(key: str, value: str) -> None:
    with pytest.raises(pyfastv.OptionError) as caught:
        check_schedule(f"{key}={value}", N_LAYER)
    assert str(caught.value) == f'{key} = "{value}" is not understood; a number, as 0.5'


@pytest.mark.parametrize(
    "value", ["", "question", "Last", "last7", "random-1", "randomx", "random4294967296"]
)
def test_an_unknown_score_is_refused_with_the_choices(value: str) -> None:
    with pytest.raises(pyfastv.OptionError) as caught:
        check_schedule(f"score={value}", N_LAYER)
    assert str(caught.value).startswith(
        f'score = "{value}" is not understood; one of: last, question-mean, question-max, all, last-no-rope, random, '
        "random7 (a seed), none"
    )


@pytest.mark.parametrize("value", ["", "topk", "top-k5", "uniform2", *NO_WINDOW, *NO_GRID, *NO_MASS])
def test_an_unknown_pick_is_refused_with_the_choices(value: str) -> None:
    with pytest.raises(pyfastv.OptionError) as caught:
        check_schedule(f"pick={value}", N_LAYER)
    assert str(caught.value).startswith(
        f'pick = "{value}" is not understood; one of: top-k, window4 (side of a window), uniform, grid3 (every third), '
        "mass0.95 (share of the scores), cover"
    )


@pytest.mark.parametrize("value", ["", "-1", "many", "Auto", "2048x", "1e3", "2147483648"])
def test_malformed_cells_are_refused(value: str) -> None:
    with pytest.raises(pyfastv.OptionError) as caught:
        check_schedule(f"cells={value}", N_LAYER)
    assert str(caught.value) == f'cells = "{value}" is not understood; a number of KV cells, as 2048, or auto'


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ("k=2,k=2", "k=2"),
        ("drop=0.5,drop=0.6", "drop=0.6"),
        ("score=last,pick=top-k,score=last", "score=last"),
        ("pick=uniform,pick=top-k", "pick=top-k"),
        ("merge,merge", "merge"),
        ("recall=0,recall=1", "recall=1"),
        ("k=2,recall=0;k=4,recall=0.5", "recall=0.5"),
        ("k=2,cells=512;k=4,cells=auto", "cells=auto"),
    ],
)
def test_a_field_given_twice_is_refused(spec: str, field: str) -> None:
    with pytest.raises(pyfastv.OptionError) as caught:
        check_schedule(spec, N_LAYER)
    assert str(caught.value) == f'"{field}": {field.split("=")[0]} is given twice'


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("k=0", "0"),
        ("k=-1", "-1"),
        ("k=32", "32"),
        ("k=4;k=4", "4"),
        ("k=4;k=2", "2"),
        ("k=2;k=2147483647", "2147483647"),
        ("drop=-0.25", "drop"),
        ("drop=1.5", "drop"),
        ("k=2,drop=0.75;k=4,drop=0.5", "drop"),
        ("recall=1.5", "recall"),
        ("recall=-1", "recall"),
        ("pick=window0", "window"),
        ("pick=grid0", "stride"),
        ("pick=mass0", "mass"),
        ("pick=mass1.01", "mass"),
    ],
)
def test_a_value_out_of_range_is_refused(spec: str, named: str) -> None:
    with pytest.raises(pyfastv.OptionError, match=named):
        check_schedule(spec, N_LAYER)
