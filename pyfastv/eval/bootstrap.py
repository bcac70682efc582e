"""Confidence by resampling: how far a mean would move, had other pictures been taken."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Interval", "mean_interval", "median_interval", "upper_bound"]

_RESAMPLES = 4000
_RESAMPLES_OF_TAILS = 20000
_AT_ONCE = 1_000_000  # numbers


class Interval(NamedTuple):
    """A value, and the ends of its confidence interval."""

    value: float
    low: float
    high: float


def mean_interval(values: ArrayLike, pictures: Sequence[object], level: float = 0.95) -> Interval:
    """The mean of one value a question, with the percentile bootstrap's interval over pictures.

    ``pictures``: which picture each question is about. Pictures are drawn with all of their questions, because answers
    about the same picture fail together (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13,
    and the cluster form of Field and Welsh, JRSS B 2007). Always the same draws for the same pictures. For a
    difference of two settings give the differences: both see the same draws then. Where all values are the same the
    interval is a point, whatever the number of pictures.
    """
    means = _resampled_means(values, pictures)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.mean(np.asarray(values, np.float64))), float(low), float(high))


def upper_bound(values: ArrayLike, pictures: Sequence[object], level: float = 0.95) -> float:
    """One-sided: with this confidence the mean over more such pictures is not above it."""
    return float(np.quantile(_resampled_means(values, pictures, _RESAMPLES_OF_TAILS), level))


def median_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """The median of independent measurements, and its interval."""
    values = np.asarray(values, np.float64)
    drawn = np.random.default_rng(0).integers(0, len(values), (_RESAMPLES, len(values)))
    low, high = np.quantile(np.median(values[drawn], axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.median(values)), float(low), float(high))


def _resampled_means(
    values: ArrayLike, pictures: Sequence[object], resamples: int = _RESAMPLES
) -> NDArray[np.float64]:
    """[resamples] means over questions, of pictures drawn with replacement."""
    values = np.asarray(values, np.float64)
    numbers = {picture: number for number, picture in enumerate(dict.fromkeys(pictures))}
    which = np.array([numbers[picture] for picture in pictures])
    sums = np.bincount(which, values, len(numbers))  # (pictures)
    counts = np.bincount(which, minlength=len(numbers))
    step = max(1, _AT_ONCE // len(numbers))
    means = []
    for first in range(0, resamples, step):
        times = _times_drawn(len(numbers), min(step, resamples - first), first)
        means.append((times @ sums) / (times @ counts))
    return np.concatenate(means)


@lru_cache(maxsize=8)
def _times_drawn(n: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """[resamples, n]: how often each of n pictures is drawn, of n draws. The same for the same arguments."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples).astype(np.float64)
