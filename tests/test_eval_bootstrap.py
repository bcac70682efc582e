"""Confidence intervals against formulas, and against how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from pyfastv.eval.bootstrap import mean_interval, median_interval, upper_bound


def test_the_interval_of_a_share_is_that_of_the_binomial() -> None:
    """900 of 1000 independent questions: a normal interval of 1.96 * sqrt(0.9 * 0.1 / 1000) = 0.0186 to each side."""
    interval = mean_interval([1.0] * 900 + [0.0] * 100, range(1000))
    assert interval.value == pytest.approx(0.9)
    assert interval.low == pytest.approx(0.9 - 0.0186, abs=0.002)
    assert interval.high == pytest.approx(0.9 + 0.0186, abs=0.002)
    one_sided = upper_bound([1.0] * 900 + [0.0] * 100, range(1000))
    assert one_sided == pytest.approx(0.9 + 1.645 * 0.00949, abs=0.002)


def test_questions_about_one_picture_count_as_one() -> None:
    values = [1.0] * 30 + [0.0] * 30
    apart = mean_interval(values, range(60))
    together = mean_interval(values, [number // 10 for number in range(60)])
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_nine_of_ten_intervals_hold_the_true_mean() -> None:
    """Coverage, on pictures with 1 to 4 questions; 95 % of the intervals are to hold it, fewer with few pictures."""
    random = np.random.default_rng(5)
    held = 0
    for _ in range(100):
        sizes = random.integers(1, 5, 40)
        pictures = np.repeat(np.arange(40), sizes)
        values = np.repeat(random.normal(2.0, 1.0, 40), sizes) + random.normal(0, 0.5, len(pictures))
        interval = mean_interval(values, pictures.tolist())
        held += interval.low <= 2.0 <= interval.high
    assert 88 <= held <= 99


def test_medians_have_intervals_around_them() -> None:
    interval = median_interval([1.0, 2.0, 3.0, 4.0, 100.0])
    assert (interval.value, interval.low >= 1.0, interval.high <= 100.0) == (3.0, True, True)
