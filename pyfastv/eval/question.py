"""What is asked: questions about pictures, with the answers that count as right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Dataset", "Question"]


@dataclass(frozen=True)
class Question:
    """One question about one picture."""

    id: str
    """Unique in its dataset."""
    image: Path | str
    """Text: a data URI."""
    text: str
    answers: tuple[str, ...] = ()
    """Right answers, or reference captions; as many people's answers as there are, repeated ones included. May be
    empty: then it can be asked, but not scored."""
    family: str = ""
    """The kind of question, for the table."""
    box: tuple[float, float, float, float] | None = None
    """Where the answer is a place: x0, y0, x1, y1 as shares of the picture's width and height."""


@dataclass(frozen=True)
class Dataset:
    """Questions as one layout has them, and how they are usually asked and scored."""

    layout: str
    questions: tuple[Question, ...]
    scorer: str
    """Of :data:`pyfastv.eval.SCORERS`; "auto": place by place, the rest exact."""
    instruction: str = ""
    """Appended to every question, on a line of its own."""
