"""TextVQA, from textvqa.org: one JSON file a split, and train_images, which the validation split is from, too."""

from __future__ import annotations

from ...errors import DataError
from ..question import Dataset, Question
from ._files import SHORT_ANSWER, Source, records, text_of

LOOKS_FOR = "TextVQA_*_val.json"


def recognizes(source: Source) -> bool:
    return bool(source.find("TextVQA_*.json"))


def load(source: Source) -> Dataset:
    """The test split has no answers: it can be asked, but not scored."""
    file = source.choose([found for found in source.find("TextVQA_*.json") if "OCR" not in found.name])
    folder = source.pictures(
        *(["test_images"] if "_test" in file.name else []), "train_images", "train_val_images"
    )

    def question(entry: dict[str, object]) -> Question:
        number = text_of(file, entry, "question_id")
        answers = entry.get("answers", [])
        if not isinstance(answers, list):
            raise DataError(f"{file}, question {number}: answers must be a list; got {answers!r}")
        return Question(
            id=number,
            image=folder / f"{text_of(file, entry, 'image_id')}.jpg",
            text=text_of(file, entry, "question"),
            answers=tuple(map(str, answers)),
        )

    return Dataset("textvqa", source.collect(map(question, records(file, "data"))), "vqa", SHORT_ANSWER)
