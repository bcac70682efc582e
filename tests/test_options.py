"""Values that are refused, with the value in the message; values that are taken."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from pyfastv import Error, FastV, OptionError, Sampling


def test_fastv_defaults_are_the_papers_example() -> None:
    assert FastV() == FastV(k=2, drop=0.5)


@pytest.mark.parametrize("k", [0, -1, 2.0, "2", None, True, math.nan, 2**31])
def test_fastv_refuses_k(k: Any) -> None:
    with pytest.raises(OptionError, match="k must be an integer") as caught:
        FastV(k=k)
    assert repr(k) in str(caught.value)
    assert isinstance(caught.value, (Error, ValueError))


@pytest.mark.parametrize("drop", [1, 1.0, -0.1, 1.5, math.nan, math.inf, "0.5", None, True, [0.5]])
def test_fastv_refuses_drop(drop: Any) -> None:
    with pytest.raises(OptionError, match="drop must be") as caught:
        FastV(drop=drop)
    assert repr(drop) in str(caught.value)


@pytest.mark.parametrize("drop", [0, 0.0, 0.999, np.float32(0.5)])
def test_fastv_takes_drop_as_float(drop: Any) -> None:
    assert type(FastV(drop=drop).drop) is float


def test_fastv_takes_numpy_integers_as_int() -> None:
    assert type(FastV(k=np.int64(3)).k) is int  # type: ignore[arg-type]


def test_options_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        FastV().k = 3  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sampling().top_k = 3  # type: ignore[misc]


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
    }
    assert dataclasses.asdict(Sampling()) == expected


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_tokens", [0, -2, 1.5, True, "5", 2**31]),
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
        ("max_tokens", 1, 1),
        ("top_k", 0, 0),
        ("top_p", 1, 1.0),
        ("repeat_last_n", -1, -1),
        ("seed", 2**32 - 1, 2**32 - 1),
        ("stop", None, ()),
        ("stop", "END", ("END",)),
        ("stop", ["a", "b"], ("a", "b")),
        ("grammar", 'root ::= "a"', 'root ::= "a"'),
    ],
)
def test_sampling_takes_values_at_the_edges(name: str, value: Any, kept: Any) -> None:
    assert getattr(Sampling(**{name: value}), name) == kept


def test_an_unknown_sampling_keyword_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="top_q"):
        Sampling(top_q=1)  # type: ignore[call-arg]
