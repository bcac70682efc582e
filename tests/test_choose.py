"""FastV's choice, a pure function: scores in, indices out."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfastv import _native

SCORES = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=300)
PERCENT = st.integers(0, 99)


def choose(scores: list[float], drop: float) -> list[int]:
    return _native.choose_top_k(np.array(scores, np.float32), drop).tolist()


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


def test_the_highest_are_kept() -> None:
    assert choose([0.1, 0.9, 0.2, 0.8], 0.5) == [1, 3]
