"""GQA, from Stanford: *_balanced_questions.json and images."""

from __future__ import annotations

from ...errors import DataError
from ..question import Dataset, Question
from ._files import SHORT_ANSWER, Source, read_json, text_of

LOOKS_FOR = "*_balanced_questions.json"


def recognizes(source: Source) -> bool:
    return bool(source.find("*_balanced_questions.json"))


def load(source: Source) -> Dataset:
    """Without a split testdev, which the literature reports, else val. Families are the structural types."""
    files = source.find("*_balanced_questions.json")
    testdev = [file for file in files if file.name.startswith("testdev")]
    file = testdev[0] if testdev and source.split is None else source.choose(files)
    entries = read_json(file)
    if not isinstance(entries, dict):
        raise DataError(f"{file}: is not an object of questions by id")
    folder = source.pictures("images")

    def question(number: str) -> Question:
        entry, where = entries[number], f"{file}, question {number}"
        if not isinstance(entry, dict):
            raise DataError(f"{where}: is not an object")
        types = entry.get("types") or {}
        return Question(
            id=number,
            image=folder / f"{text_of(where, entry, 'imageId')}.jpg",
            text=text_of(where, entry, "question"),
            answers=(text_of(where, entry, "answer"),) if "answer" in entry else (),
            family=str(types.get("structural", "")),
        )

    return Dataset("gqa", source.collect(map(question, entries)), "exact", SHORT_ANSWER)
