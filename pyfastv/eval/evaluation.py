"""The result: how right the answers were, setting by setting, how sure that is, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .answers import Given
from .bootstrap import Interval, mean_interval
from .question import Question
from .scorers import score_answers
from .settings import OFF
from .timing import Timing, ratio, spread

__all__ = ["Evaluation", "Result", "evaluate"]


@dataclass(frozen=True)
class Result:
    """One setting. Scores are means over questions: 1 is all right."""

    setting: str
    score: Interval
    """With its 95 % confidence interval."""
    difference: Interval | None
    """Score less that of off, by question; None: this is off."""
    share: float | None
    """Retained share of the visual tokens, mean over the layers and the questions."""
    families: Mapping[str, float]
    timing: Timing | None = None

    @property
    def differs(self) -> bool:
        """The interval of the difference to off does not hold 0."""
        return self.difference is not None and not self.difference.low <= 0.0 <= self.difference.high


@dataclass(frozen=True)
class Evaluation:
    """All settings, off first."""

    scorer: str
    n_questions: int
    n_pictures: int
    family_sizes: Mapping[str, int]
    results: Sequence[Result]

    def to_dict(self) -> dict[str, Any]:
        """For JSON. Scores are shares, times milliseconds."""
        off = self.results[0].timing
        return {
            "scorer": self.scorer,
            "questions": self.n_questions,
            "pictures": self.n_pictures,
            "families": dict(self.family_sizes),
            "settings": [_to_dict(result, off) for result in self.results],
        }


def evaluate(
    questions: Sequence[Question],
    answers: Mapping[str, Sequence[Given]],
    scorer: str,
    times: Mapping[str, Timing] | None = None,
) -> Evaluation:
    """Score the answers of :func:`pyfastv.eval.ask_all`. Raises OptionError as :func:`score_answers` does."""
    scores = {
        setting: np.array(score_answers(scorer, questions, [one.answer for one in given]))
        for setting, given in answers.items()
    }
    pictures = [question.image for question in questions]
    sizes: dict[str, int] = {}
    for question in questions:
        if question.family:
            sizes[question.family] = sizes.get(question.family, 0) + 1
    results = []
    for setting, values in scores.items():
        shares = [given.share for given in answers[setting] if given.share is not None]
        results.append(
            Result(
                setting=setting,
                score=mean_interval(values, pictures),
                difference=None if setting == OFF else mean_interval(values - scores[OFF], pictures),
                share=float(np.mean(shares)) if shares else None,
                families={family: _mean_of(family, questions, values) for family in sorted(sizes)},
                timing=None if times is None else times[setting],
            )
        )
    return Evaluation(scorer, len(questions), len(set(pictures)), dict(sorted(sizes.items())), results)


def _mean_of(family: str, questions: Sequence[Question], values: np.ndarray) -> float:
    return float(np.mean(values[[question.family == family for question in questions]]))


def _to_dict(result: Result, off: Timing | None) -> dict[str, Any]:
    values: dict[str, Any] = {
        "setting": result.setting,
        "score": result.score._asdict(),
        "difference": None if result.difference is None else result.difference._asdict(),
        "retained_share": result.share,
        "families": dict(result.families),
    }
    if result.timing is not None and off is not None:
        values["milliseconds"] = result.timing.to_dict()
        values["first_token_ms"] = spread(result.timing.first_token_ms)._asdict()
        values["times_faster"] = ratio(off.first_token_ms, result.timing.first_token_ms)._asdict()
    return values
