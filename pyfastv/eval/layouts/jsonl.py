"""Our own layout: one JSON object a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import DataError
from ..question import Dataset, Question
from ._files import Source, picture_of, read_jsonl, text_of

LOOKS_FOR = "a .jsonl file, or questions.jsonl"


def recognizes(source: Source) -> bool:
    return source.path.suffix == ".jsonl" or (source.path / "questions.jsonl").is_file()


def load(source: Source) -> Dataset:
    """``image`` (relative to the file, or a data URI) and ``question``; ``answer`` or ``answers``, ``id`` (default: the
    line's number, from 0), ``family`` and ``box`` may be missing."""
    file = source.path if source.path.is_file() else source.path / "questions.jsonl"
    folder = source.images or file.parent
    lines = enumerate(read_jsonl(file))
    questions = source.collect(_question(where, line, str(number), folder) for number, (where, line) in lines)
    people = {len(question.answers) for question in questions}
    return Dataset("jsonl", questions, "vqa" if min(people, default=0) >= 10 else "auto")


def _question(where: str, line: dict[str, Any], number: str, folder: Path) -> Question:
    return Question(
        id=text_of(where, line, "id") if "id" in line else number,
        image=picture_of(where, line, "image", folder),
        text=text_of(where, line, "question"),
        answers=_answers(where, line),
        family=text_of(where, line, "family") if "family" in line else "",
        box=_box(where, line.get("box")),
    )


def _answers(where: str, line: dict[str, Any]) -> tuple[str, ...]:
    values = line["answers"] if "answers" in line else [line["answer"]] if "answer" in line else []
    if not isinstance(values, list) or not all(isinstance(value, (str, int, float)) for value in values):
        raise DataError(f"{where}: answers must be a list of texts; got {values!r}")
    return tuple(str(value) for value in values)


def _box(where: str, value: Any) -> tuple[float, float, float, float] | None:
    if value is None:
        return None
    try:
        x0, y0, x1, y1 = (float(side) for side in value)
        if 0 <= x0 <= x1 <= 1 and 0 <= y0 <= y1 <= 1:
            return x0, y0, x1, y1
    except (TypeError, ValueError):
        pass
    raise DataError(
        f"{where}: box must be [x0, y0, x1, y1] as shares of the picture's width and height, in [0, 1]; got {value!r}"
    )
