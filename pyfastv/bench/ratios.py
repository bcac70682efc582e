"""Ratios of times, and when they are a difference.

Every setting is measured once in every round, in turn with what it is compared with, so that a slow minute of the machine
is in both: the ratio is taken round by round. Of these ratios there is an interval that holds the true one with a
confidence of at least 95%, and there is a difference if 1 is outside of it:

- from 6 rounds on the interval of the median between two order statistics, which assumes nothing about the noise (with 6
  to 8 rounds: from the lowest to the highest ratio);
- with 2 to 5 rounds Student's t on the logarithms, which an outlier widens;
- with one round there is none, and nothing is called a difference.

Two processes of the very same libraries can differ for as long as they live, because buffers lie differently in memory:
by a percent or two. So between processes the interval is widened by 2% on either side, unless there were 3 restarts or
more: then the medians of the restarts are what is compared.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["BETWEEN_PROCESSES", "CONFIDENCE", "RULE", "Ratio", "compare"]

CONFIDENCE = 0.95
BETWEEN_PROCESSES = 0.02
MIN_RESTARTS = 3

RULE = (
    "A ratio is the other's time over the setting's in the same round, the median over the rounds; in brackets where it "
    "is with 95% confidence (6 rounds or more: between order statistics; fewer: Student's t on logarithms; between "
    "processes with fewer than 3 restarts 2% wider). No difference is called where 1 lies inside."
)

# Student's t, two-sided, 95%, by degrees of freedom
_T = (12.706, 4.303, 3.182, 2.776)


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as something else."""

    median: float
    low: float | None
    high: float | None
    """With 95% confidence between these; None: too few rounds to say."""
    rounds: int

    @property
    def verdict(self) -> str:
        """ "faster", "slower", "no difference measured", or "one round: no telling"."""
        if self.low is None or self.high is None:
            return "one round: no telling"
        if self.low > 1:
            return "faster"
        return "slower" if self.high < 1 else "no difference measured"

    @property
    def is_difference(self) -> bool:
        return self.verdict in ("faster", "slower")

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"verdict": self.verdict}


def compare(
    base: Sequence[Sequence[float]], other: Sequence[Sequence[float]], *, between_processes: bool = False
) -> Ratio:
    """``base`` over ``other``, times of the same rounds; one inner sequence for each restart.

    ``between_processes``: they were not measured in the same process. Raises ValueError without a round."""
    by_restart = [
        [math.log(a / b) for a, b in zip(x, y, strict=True)] for x, y in zip(base, other, strict=True)
    ]
    by_restart = [logs for logs in by_restart if logs]
    logs = [log for restart in by_restart for log in restart]
    median = math.exp(statistics.median(logs))
    margin = 0.0
    units = logs
    if between_processes and len(by_restart) >= MIN_RESTARTS:
        units = [statistics.median(restart) for restart in by_restart]
    elif between_processes:
        margin = math.log1p(BETWEEN_PROCESSES)
    if len(units) < 2:
        return Ratio(median, None, None, len(logs))
    low, high = _student(units) if len(units) <= len(_T) + 1 else _order_statistics(units)
    # the middle of the logarithms need not be their median
    return Ratio(
        median,
        math.exp(min(low - margin, math.log(median))),
        math.exp(max(high + margin, math.log(median))),
        len(logs),
    )


def _student(values: Sequence[float]) -> tuple[float, float]:
    half = _T[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    middle = statistics.fmean(values)
    return middle - half, middle + half


def _order_statistics(values: Sequence[float]) -> tuple[float, float]:
    """The narrowest symmetric pair of order statistics that holds the median with ``CONFIDENCE`` (the sign test)."""
    ordered, n = sorted(values), len(values)
    k, outside = 0, 2 * 0.5**n  # the median is below the lowest or above the highest
    while True:
        wider = outside + 2 * math.comb(n, k + 1) * 0.5**n
        if wider > 1 - CONFIDENCE or k + 1 >= n - 1 - (k + 1):
            return ordered[k], ordered[n - 1 - k]
        k, outside = k + 1, wider
