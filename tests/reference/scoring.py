"""Scores an answer to a question of the bench. Pure functions; the standard library only.

A question is a line of questions.jsonl: a dict with "answer" and, where something has a place,
"box" (x0, y0, x1, y1 in [0, 1]).
"""

from __future__ import annotations

import math
import re
from typing import Any

# How far a place may be from the box's centre, as a share of the picture's side.
PLACE_TOLERANCE = 0.08

_PUNCTUATION = re.compile(r"[^\w\s]|_")
_PLACE = re.compile(r"\[\s*(\d*\.?\d+)\s*,\s*(\d*\.?\d+)\s*\]")


def normalized(answer: str) -> str:
    """Lower case, punctuation as space, single spaces: what an exact match compares.

    >>> normalized(' It is 5:21. ')
    'it is 5 21'
    """
    return " ".join(_PUNCTUATION.sub(" ", answer.casefold()).split())


def parse_place(answer: str) -> tuple[float, float] | None:
    """The first "[x, y]" in an answer, or None.

    >>> parse_place('At [0.61, 0.12].')
    (0.61, 0.12)
    """
    found = _PLACE.search(answer)
    return (float(found[1]), float(found[2])) if found else None


def asks_for_place(question: dict[str, Any]) -> bool:
    """Whether the right answer is a place, not words (words about a boxed object are words)."""
    return parse_place(question["answer"]) is not None


def box_centre(box: list[float]) -> tuple[float, float]:
    x0, y0, x1, y1 = box
    return (x0 + x1) / 2, (y0 + y1) / 2


def is_right(question: dict[str, Any], answer: str) -> bool:
    """Whether the answer counts.

    A place is right when its distance (Euclidean) from the box's centre is at most PLACE_TOLERANCE;
    anything else when it equals the reference after normalized().
    """
    if not asks_for_place(question):
        return normalized(answer) == normalized(question["answer"])
    place = parse_place(answer)
    return place is not None and math.dist(place, box_centre(question["box"])) <= PLACE_TOLERANCE


def accuracy(questions: list[dict[str, Any]], answers: dict[str, str]) -> dict[str, dict[str, int | float]]:
    """Right answers of all questions ("all") and of each family.

    answers: question id to answer; every question needs one.
    Returns {"all" or family: {"right": n, "total": n, "percent": x}}.
    """
    table: dict[str, dict[str, int | float]] = {}
    for question in questions:
        right = is_right(question, answers[question["id"]])
        for group in ("all", question["family"]):
            row = table.setdefault(group, {"right": 0, "total": 0})
            row["right"] += right
            row["total"] += 1
    for row in table.values():
        row["percent"] = round(100 * row["right"] / row["total"], 2)
    return table
