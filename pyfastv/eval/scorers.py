"""Scorers: how right an answer is. Pure functions of a question and an answer; 0 is wrong, 1 is right."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from ..errors import OptionError
from .cider import cider_scores
from .normalize import normalize
from .question import Question

__all__ = ["PLACE_TOLERANCE", "SCORERS", "check_answers", "score_answers"]

PLACE_TOLERANCE = 0.08
"""How far a place may be from the center of its box, as a share of the picture's sides."""

_NUMBER = r"\s*(\d*\.?\d+)\s*"
_PLACE = re.compile(rf"\[{_NUMBER},{_NUMBER}(?:,{_NUMBER},{_NUMBER})?\]")


def exact(question: Question, answer: str) -> float:
    """1 when the answer is one of the right ones, both after :func:`normalize`."""
    given = normalize(answer)
    return float(any(given == normalize(right) for right in question.answers))


def contains(question: Question, answer: str) -> float:
    """1 when one of the right answers is in the answer, as whole words, both after :func:`normalize`."""
    given = f" {normalize(answer)} "
    return float(any(f" {right} " in given for right in map(normalize, question.answers) if right))


def yes_no(question: Question, answer: str) -> float:
    """1 when the first "yes", "no" or "not" of the answer says the same as the right answer; POPE and MME."""
    given = _first_yes_or_no(answer)
    return float(given is not None and any(given == _first_yes_or_no(right) for right in question.answers))


def anls(question: Question, answer: str) -> float:
    """Average normalized Levenshtein similarity: 1 - edits / the longer one's length, 0 when that is below 0.5.

    Biten et al., "Scene Text Visual Question Answering", ICCV 2019, section 3.3: the best over the right answers, case
    and outer space ignored. A question's part of the average.
    """
    given = answer.strip().casefold()
    return max((_similarity(given, right.strip().casefold()) for right in question.answers), default=0.0)


def vqa(question: Question, answer: str) -> float:
    """VQA accuracy: min(people who gave this answer / 3, 1), averaged over all sets of people less one.

    Antol et al., "VQA: Visual Question Answering", ICCV 2015, section 3, as its evaluation computes it for ten
    answers, after :func:`normalize`.
    """
    given = normalize(answer)
    agree = [normalize(right) == given for right in question.answers]
    return sum(min((sum(agree) - one) / 3, 1.0) for one in agree) / len(agree)


def grounding(question: Question, answer: str) -> float:
    """1 when the first "[x, y]" of the answer is at most PLACE_TOLERANCE from the center of the question's box.

    Of "[x0, y0, x1, y1]" the center is taken. All are shares of the picture's width and height.
    """
    place = _place(answer)
    if place is None or question.box is None:
        return 0.0
    x0, y0, x1, y1 = question.box
    return float(math.dist(place, ((x0 + x1) / 2, (y0 + y1) / 2)) <= PLACE_TOLERANCE)


def auto(question: Question, answer: str) -> float:
    """:func:`grounding` where the right answer is a place and has a box, :func:`exact` elsewhere."""
    return grounding(question, answer) if _asks_for_place(question) else exact(question, answer)


SCORERS: dict[str, Callable[[Question, str], float] | None] = {
    "auto": auto,
    "exact": exact,
    "contains": contains,
    "yes-no": yes_no,
    "anls": anls,
    "vqa": vqa,
    "grounding": grounding,
    "cider": None,  # of all answers at once
}
"""By the names that the command line takes."""


def score_answers(scorer: str, questions: Sequence[Question], answers: Sequence[str]) -> list[float]:
    """One score a question. All are from 0 to 1, but those of "cider", whose usual 100 is 1.

    Raises OptionError: no such scorer, or questions that it cannot score; "cider" without its library.
    """
    check_answers(scorer, questions)
    function = SCORERS[scorer]
    if function is None:
        return cider_scores([question.answers for question in questions], answers)
    return [function(question, answer) for question, answer in zip(questions, answers, strict=True)]


def check_answers(scorer: str, questions: Sequence[Question]) -> None:
    """Raises OptionError when a question lacks what the scorer compares with."""
    if scorer not in SCORERS:
        raise OptionError(f"scorer must be one of {', '.join(SCORERS)}; got {scorer!r}")
    for question in questions:
        if scorer == "grounding" and question.box is None:
            raise OptionError(f"question {question.id}: scorer grounding needs a box, and it has none")
        if scorer != "grounding" and not question.answers:
            raise OptionError(f"question {question.id} has no answer: there is nothing to score it by")
        if scorer == "vqa" and len(question.answers) < 4:
            raise OptionError(
                f"question {question.id}: scorer vqa needs the answers of at least 4 people, usually 10, and it has "
                f"{len(question.answers)}: use exact"
            )


def _asks_for_place(question: Question) -> bool:
    return question.box is not None and any(_place(right) is not None for right in question.answers)


def _place(text: str) -> tuple[float, float] | None:
    found = _PLACE.search(text)
    if found is None:
        return None
    numbers = [float(number) for number in found.groups() if number is not None]
    return ((numbers[0] + numbers[2]) / 2, (numbers[1] + numbers[3]) / 2) if numbers[2:] else tuple(numbers)  # type: ignore[return-value]


def _first_yes_or_no(text: str) -> str | None:
    words = (word for word in normalize(text).split() if word in ("yes", "no", "not"))
    return {"yes": "yes", "no": "no", "not": "no", None: None}[next(words, None)]


def _similarity(one: str, other: str) -> float:
    longest = max(len(one), len(other))
    if longest == 0:
        return 1.0
    similarity = 1.0 - _edits(one, other) / longest
    return similarity if similarity >= 0.5 else 0.0


def _edits(one: str, other: str) -> int:
    """Levenshtein distance, row by row."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row = row, [i]
        for j, b in enumerate(other, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b)))
    return row[-1]
