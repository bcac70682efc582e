"""FastV's choice, a pure function: scores in, indices out."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyfastv
from pyfastv import _native

SCORES = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=300)
PERCENT = st.integers(0, 99)


def choose(scores: list[float], drop: float) -> list[int]:
    return _native.choose(np.array(scores, np.float32), drop).tolist()


@given(SCORES, PERCENT)
def test_the_count_is_round_half_even_and_at_least_one(scores: list[float], percent: int) -> None:
    exact = Fraction(len(scores) * (100 - percent), 100)
    assert len(choose(scores, percent / 100)) == max(1, round(exact))


@given(SCORES, PERCENT)
def test_indices_ascend_and_nothing_dropped_scores_higher(scores: list[float], percent: int) -> None:
    kept = choose(scores, percent / 100)
    assert kept == sorted(set(kept))
    dropped = set(range(len(scores))) - set(kept)
    lowest = min(np.float32(scores[i]) for i in kept)
    assert all(np.float32(scores[i]) <= lowest for i in dropped)


@given(st.integers(1, 300), PERCENT)
def test_equal_scores_keep_the_first(n: int, percent: int) -> None:
    kept = choose([0.5] * n, percent / 100)
    assert kept == list(range(len(kept)))


@given(SCORES)
def test_without_drop_everything_is_kept(scores: list[float]) -> None:
    assert choose(scores, 0.0) == list(range(len(scores)))


@pytest.mark.parametrize(
    ("n", "drop", "kept"), [(576, 0.5, 288), (576, 0.9, 58), (5, 0.5, 2), (7, 0.5, 4), (3, 0.99, 1)]
)
def test_examples(n: int, drop: float, kept: int) -> None:
    assert len(choose(list(np.linspace(0, 1, n)), drop)) == kept


@given(SCORES, PERCENT, st.integers(1, 30))
def test_windows_keep_the_count_and_ascend(scores: list[float], percent: int, side: int) -> None:
    kept = _native.choose(np.array(scores, np.float32), percent / 100, f"window{side}").tolist()
    assert kept == sorted(set(kept))
    assert len(kept) == len(choose(scores, percent / 100))


@given(st.integers(2, 24), st.integers(1, 24), PERCENT, st.integers(0, 2**32 - 1))
def test_every_window_is_served_its_share(grid: int, side: int, percent: int, seed: int) -> None:
    """To less than two tokens, whatever the scores, at the smaller windows of the edge too."""
    scores = np.random.default_rng(seed).random(grid * grid).astype(np.float32)
    kept = _native.choose(scores, percent / 100, f"window{side}")
    share = len(kept) / len(scores)
    y, x = np.divmod(np.arange(grid * grid), grid)
    window = y // side * 1000 + x // side
    for name in np.unique(window):
        served = (window[kept] == name).sum()
        assert abs(served - share * (window == name).sum()) < 2


@given(st.integers(1, 600), PERCENT)
def test_uniform_is_evenly_spaced(n: int, percent: int) -> None:
    kept = _native.choose(np.zeros(n, np.float32), percent / 100, "uniform")
    steps = np.diff(kept)
    assert len(kept) == len(choose([0.0] * n, percent / 100))
    assert kept[0] >= 0
    assert kept[-1] < n
    assert steps.size == 0 or steps.max() - steps.min() <= 1


@pytest.mark.parametrize("pick", ["", "topk", "window", "window0", "window-1", "window4x", "window99999"])
def test_an_unknown_pick_is_refused(pick: str) -> None:
    with pytest.raises(pyfastv.OptionError, match="pick"):
        _native.choose(np.zeros(4, np.float32), 0.5, pick)
    with pytest.raises(pyfastv.OptionError, match="pick"):
        pyfastv.FastV(pick=pick)


def test_an_unknown_score_is_refused() -> None:
    with pytest.raises(pyfastv.OptionError, match="question-max"):
        pyfastv.FastV(score="question")


def test_the_highest_are_kept() -> None:
    assert choose([0.1, 0.9, 0.2, 0.8], 0.5) == [1, 3]
