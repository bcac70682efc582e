"""When the bench calls a ratio of times a difference."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from pyfastv.bench.ratios import BETWEEN_PROCESSES, compare

ROUNDS = [2, 3, 4, 5, 6, 7, 8, 12, 20]


def times(random: np.random.Generator, n: int, factor: float = 1.0, outliers: float = 0.05) -> list[float]:
    """Milliseconds: a hundred, with a noise of 2% and an outlier now and then, as a machine has them."""
    disturbed = np.where(random.random(n) < outliers, 1.3, 1.0)
    return list(100 * factor * random.lognormal(0, 0.02, n) * disturbed)


@pytest.mark.parametrize("n", ROUNDS)
def test_noise_is_not_called_a_difference(n: int) -> None:
    random = np.random.default_rng(n)
    tries = 1000
    called = sum(compare([times(random, n)], [times(random, n)]).is_difference for _ in range(tries))
    # 5% of 1000, and three standard deviations of that
    assert called <= 50 + 3 * math.sqrt(tries * 0.05 * 0.95)


@pytest.mark.parametrize(("n", "power"), [(3, 0.75), (4, 0.95), (5, 0.95), (6, 0.95), (12, 0.99)])
def test_a_real_tenth_is_found(n: int, power: float) -> None:
    random = np.random.default_rng(n)
    tries = 500

    def verdicts(outliers: float) -> list[str]:
        pairs = [(times(random, n, 1.1, outliers), times(random, n, 1.0, outliers)) for _ in range(tries)]
        return [compare([slow], [fast]).verdict for slow, fast in pairs]

    steady, disturbed = verdicts(0), verdicts(0.05)
    assert steady.count("faster") >= power * tries
    assert disturbed.count("faster") >= 0.5 * tries
    assert steady.count("slower") == disturbed.count("slower") == 0


def test_what_disturbs_a_whole_round_is_in_both() -> None:
    random = np.random.default_rng(0)
    disturbed = random.uniform(1, 3, 6)
    base = disturbed * [100, 101, 100, 99, 100, 101]
    other = disturbed * [90, 90, 91, 90, 89, 90]
    ratio = compare([list(base)], [list(other)])
    assert ratio.verdict == "faster"
    assert ratio.median == pytest.approx(1.11, abs=0.01)
    assert ratio.low == pytest.approx(1.10, abs=0.01)


def test_one_round_tells_nothing() -> None:
    ratio = compare([[200.0]], [[100.0]])
    assert ratio.median == pytest.approx(2)
    assert (ratio.low, ratio.high) == (None, None)
    assert not ratio.is_difference
    assert "one round" in ratio.verdict


def test_the_interval_is_of_order_statistics_with_the_sign_test_s_confidence() -> None:
    """Coverage by counting: the median is between the chosen two unless too few of n fair coins fall on one side."""
    for n in range(6, 25):
        values = [math.exp(i / 100) for i in range(n)]
        ratio = compare([values], [[1.0] * n])
        assert ratio.low is not None
        below = round(100 * math.log(ratio.low))  # values that lie under the interval
        coverage = 1 - 2 * sum(math.comb(n, i) for i in range(below + 1)) / 2**n
        assert coverage >= 0.95
        if below + 1 < n // 2:
            narrower = 1 - 2 * sum(math.comb(n, i) for i in range(below + 2)) / 2**n
            assert narrower < 0.95


def test_students_t_agrees_with_the_table() -> None:
    logs = [0.10, 0.12, 0.11]
    ratio = compare([[math.exp(x) for x in logs]], [[1.0] * 3])
    half = 4.303 * 0.01 / math.sqrt(3)
    assert math.log(ratio.low or 0) == pytest.approx(0.11 - half, abs=1e-6)
    assert math.log(ratio.high or 0) == pytest.approx(0.11 + half, abs=1e-6)


def test_between_processes_a_percent_is_no_difference() -> None:
    base, other = [[101.5, 101.4, 101.6, 101.5, 101.5, 101.4]], [[100.0] * 6]
    assert compare(base, other).verdict == "faster"
    between = compare(base, other, between_processes=True)
    assert between.verdict == "no difference measured"
    assert between.high == pytest.approx(1.016 * (1 + BETWEEN_PROCESSES))


def test_restarts_are_compared_by_their_medians() -> None:
    """Each pair of processes is off by something of its own, for as long as it lives: rounds do not tell of it."""
    base = [[100 + bias + wobble for wobble in (0, 0.1, -0.1)] for bias in (3.0, -2.0, 0.5)]
    other = [[100.0] * 3] * 3
    assert compare(base, other, between_processes=True).verdict == "no difference measured"
    faster = [[1.5 * value for value in restart] for restart in base]
    assert compare(faster, other, between_processes=True).verdict == "faster"


def test_a_ratio_and_its_inverse_say_the_same() -> None:
    random = np.random.default_rng(1)
    a, b, c = (times(random, 9, factor) for factor in (1.0, 1.0, 1.2))
    for one, other in combinations((a, b, c), 2):
        there, back = compare([one], [other]), compare([other], [one])
        assert there.median * back.median == pytest.approx(1)
        assert (there.low or 0) * (back.high or 0) == pytest.approx(1)
        assert there.is_difference == back.is_difference
