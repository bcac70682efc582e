"""What settings take: measured on some of the questions, in turn, each as a first question about a new picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.runner import Runner
from ..errors import OptionError
from ..settings.setting import Setting
from .asking import Asking
from .bootstrap import Interval, median_interval
from .question import Question

__all__ = ["Timing", "ratio", "spread", "time_settings"]

_PARTS = ("encode_ms", "prefill_ms", "first_token_ms", "generate_ms")


@dataclass(frozen=True)
class Timing:
    """Wall-clock milliseconds of one setting: [rounds, questions]."""

    encode_ms: NDArray[np.float64]
    """Vision encoder and projector."""
    prefill_ms: NDArray[np.float64]
    """The language model's share of the time to the first token."""
    first_token_ms: NDArray[np.float64]
    """From the picture's pixels to the first token of the answer."""
    generate_ms: NDArray[np.float64]
    """The answer; settings may answer at different length."""

    def to_dict(self) -> dict[str, Any]:
        """Medians."""
        return {name: round(float(np.median(getattr(self, name))), 3) for name in _PARTS}


def time_settings(
    settings: Sequence[str],
    questions: Sequence[Question],
    asking: Asking,
    rounds: int = 3,
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Timing]:
    """Every setting answers every question in every round, one after the other, in an order that rotates.

    Nothing is kept from one answer to the next, neither the context nor the encoder's output. The first answers, which
    warm up, do not count. One process; the machine should have nothing else to do. Raises as
    :meth:`pyfastv.Runner.ask`.
    """
    if not questions or rounds < 1:
        raise OptionError(f"timing needs a question and a round; got {len(questions)} and {rounds}")
    shape = (rounds, len(questions))
    measured = {setting: {part: np.zeros(shape) for part in _PARTS} for setting in settings}
    # the encoder's output is not to come from a cache; text, pictures and setting as when the answers were made
    with Runner(
        **{**asking.runner, "fastv": None, "encoder_cache_mb": 0, "encoder_cache_dir": None}
    ) as runner:

        def ask(setting: str, question: Question) -> dict[str, float]:
            runner._use(Setting.parse(setting))  # clears the context
            options: Any = {"system": asking.system, "max_tokens": asking.max_tokens}
            report = runner.ask(question.image, asking.text(question), **options).report
            return {part: getattr(report, part) for part in _PARTS}

        for setting in settings:
            ask(setting, questions[0])
        for round_number in range(rounds):
            for number, question in enumerate(questions):
                first = (round_number + number) % len(settings)
                for setting in (*settings[first:], *settings[:first]):
                    for part, value in ask(setting, question).items():
                        measured[setting][part][round_number, number] = value
                if progress is not None:
                    progress(round_number * len(questions) + number + 1, rounds * len(questions))
    return {setting: Timing(**parts) for setting, parts in measured.items()}


def ratio(off: NDArray[np.float64], setting: NDArray[np.float64]) -> Interval:
    """How many times faster than off: the median over questions of the ratio of their medians over the rounds."""
    return median_interval(np.median(off, axis=0) / np.median(setting, axis=0))


def spread(times: NDArray[np.float64]) -> Interval:
    """The median over questions of the medians over the rounds."""
    return median_interval(np.median(times, axis=0))
