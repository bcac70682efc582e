"""Successive halving: many settings on few pictures, then fewer settings on more."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import OptionError
from ..bootstrap import upper_bound

__all__ = ["MIN_PICTURES", "Sample", "Standing", "search"]

MIN_PICTURES = 4
"""Fewer tell nothing about other pictures."""

_SAME_COST = 0.005


@dataclass(frozen=True)
class Sample:
    """One setting on one question."""

    kl: float
    """Mean over the positions of the answer, nats."""
    changed: float
    """Share of the positions where another token is the likeliest."""
    cost: float
    """Share of the unpruned model's token rows."""


@dataclass(eq=False)
class Standing:
    """What is known of one setting so far."""

    setting: str
    order: int
    """Its place in the list: of settings that cost the same the first one is taken."""
    level: float
    """Of confidence in each bound alone, as 0.95."""
    upper_level: float
    """Of the upper bounds, so that those of all settings together hold with ``level``."""
    samples: list[Sample] = field(default_factory=list)
    pictures: list[int] = field(default_factory=list)
    """Which picture each sample is of."""

    @property
    def n_pictures(self) -> int:
        """Pictures 0 to this have been seen."""
        return self.pictures[-1] + 1 if self.pictures else 0

    @property
    def kl(self) -> float:
        """Mean over the questions."""
        return self._mean("kl")

    @property
    def changed(self) -> float:
        """Mean over the questions."""
        return self._mean("changed")

    @property
    def cost(self) -> float:
        """Mean over the questions."""
        return self._mean("cost")

    @property
    def kl_upper(self) -> float:
        """With confidence ``level`` no setting's mean over more such pictures is above its bound."""
        return self._bound("kl", self.upper_level)

    @property
    def kl_lower(self) -> float:
        """With confidence ``level`` the mean over more such pictures is not below it."""
        return self._bound("kl", 1 - self.level)

    @property
    def changed_upper(self) -> float:
        """As ``kl_upper``."""
        return self._bound("changed", self.upper_level)

    def to_dict(self) -> dict[str, Any]:
        """For the profile."""
        names = ("kl", "kl_upper", "changed", "changed_upper", "cost")
        values = {name: round(getattr(self, name), 6) for name in names}
        return {
            "setting": self.setting,
            "pictures": self.n_pictures,
            "questions": len(self.samples),
            **values,
        }

    def _mean(self, name: str) -> float:
        return float(np.mean([getattr(sample, name) for sample in self.samples]))

    def _bound(self, name: str, level: float) -> float:
        return upper_bound([getattr(sample, name) for sample in self.samples], self.pictures, level)


Measure = Callable[[int, Sequence[str]], Mapping[str, Sequence[Sample]]]
"""(picture, settings) to one sample a question of the picture, by setting."""


def search(
    settings: Sequence[str],
    n_pictures: int,
    measure: Measure,
    target: float,
    *,
    level: float = 0.95,
    seconds: float | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[Standing | None, list[Standing]]:
    """The cheapest setting whose mean KL is, with confidence ``level``, at most ``target``; and all, cheapest first.

    Of settings that cost the same (within half a percent of unpruned) the first in the list. The confidence is that of
    all settings together (Bonferroni): of many that are tried some look good by luck.

    After Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS
    2016: the pictures that every setting left has seen double from rung to rung, and half of the settings stay. Those
    go first whose lower bound is above the target, then those that cost more than one whose upper bound is below it, then
    the least promising: of those on target the dearest, before them those that are furthest from it. If on all pictures
    none passes, those that went for their cost get all pictures, too, cheapest first, until one passes.

    None passes: the first value is None. ``seconds``: then the search ends with the pictures seen so far, at least 4.
    ``progress``: called with (samples so far, an estimate of all). Raises OptionError: fewer than 4 pictures.
    """
    if n_pictures < MIN_PICTURES:
        raise OptionError(f"tuning needs at least {MIN_PICTURES} pictures; got {n_pictures}")
    if not settings:
        raise OptionError("tuning needs a setting to try; got none")
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    different = list(dict.fromkeys(settings))
    upper_level = 1 - (1 - level) / len(different)
    standings = [Standing(setting, order, level, upper_level) for order, setting in enumerate(different)]
    rungs = _rungs(n_pictures)
    total = _estimate(len(standings), rungs)
    done = 0

    def extend(left: Sequence[Standing], until: int) -> bool:
        """Show them pictures; False: time is up."""
        nonlocal done
        for picture in range(left[0].n_pictures, until):
            if time.monotonic() > deadline and picture >= MIN_PICTURES:
                return False
            found = measure(picture, [standing.setting for standing in left])
            for standing in left:
                samples = found[standing.setting]
                standing.samples += samples
                standing.pictures += [picture] * len(samples)
            done += len(left)
            if progress is not None:
                progress(min(done, total), total)
        return True

    left, spared = standings, []
    in_time = True
    for number, until in enumerate(rungs):
        in_time = extend(left, until)
        if not in_time or number == len(rungs) - 1:
            break
        left, gone = _halve(left, target)
        spared += gone
        if not left:
            break

    best = _cheapest([standing for standing in left if standing.kl_upper <= target])
    for standing in sorted(spared, key=_by_cost):
        if best is not None or not in_time:
            break
        in_time = extend([standing], n_pictures)
        if in_time and standing.kl_upper <= target:
            best = standing
    return best, sorted(standings, key=_by_cost)


def _rungs(n_pictures: int) -> list[int]:
    """4 or a few more, doubling to all."""
    halvings = int(math.log2(n_pictures / MIN_PICTURES))
    return [math.ceil(n_pictures / 2**left) for left in range(halvings, -1, -1)]


def _estimate(n_settings: int, rungs: Sequence[int]) -> int:
    """Pictures times settings, if exactly half of them go at every rung."""
    before = [0, *rungs[:-1]]
    return sum(
        (until - since) * max(1, n_settings // 2**number)
        for number, (since, until) in enumerate(zip(before, rungs, strict=True))
    )


def _halve(standings: Sequence[Standing], target: float) -> tuple[list[Standing], list[Standing]]:
    """(those that stay, those that went for their cost and might pass)."""
    able = [standing for standing in standings if standing.kl_lower <= target]
    passing = _cheapest([standing for standing in able if standing.kl_upper <= target])
    needed = [standing for standing in able if passing is None or standing.cost <= passing.cost + _SAME_COST]
    on_target = sorted((standing for standing in needed if standing.kl <= target), key=_by_cost)
    others = sorted(
        (standing for standing in needed if standing.kl > target), key=lambda standing: standing.kl
    )
    stay = [*on_target, *others][: math.ceil(len(standings) / 2)]
    return stay, [standing for standing in able if standing not in stay]


def _cheapest(standings: Sequence[Standing]) -> Standing | None:
    if not standings:
        return None
    lowest = min(standing.cost for standing in standings)
    return min(
        (standing for standing in standings if standing.cost <= lowest + _SAME_COST), key=lambda s: s.order
    )


def _by_cost(standing: Standing) -> tuple[int, int]:
    return round(standing.cost / _SAME_COST), standing.order
