"""POPE: is there such a thing in the picture? Files coco_pope_*.json with an object a line, pictures of COCO val2014."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..question import Dataset, Question
from ._files import SHORT_ANSWER, Source, picture_of, read_jsonl, text_of

LOOKS_FOR = "*_pope_*.json"


def recognizes(source: Source) -> bool:
    return bool(source.find("*_pope_*.json"))


def load(source: Source) -> Dataset:
    """All files together, or those of the split; families are adversarial, popular and random."""
    files = source.find("*_pope_*.json")
    if source.split is not None:
        files = [file for file in files if source.split in file.name]
    folder = source.pictures("val2014")

    def questions() -> Iterator[Question]:
        for file in files:
            yield from _questions(file, folder)

    return Dataset("pope", source.collect(questions()), "yes-no", SHORT_ANSWER)


def _questions(file: Path, folder: Path) -> Iterator[Question]:
    family = file.stem.rpartition("_")[2]
    for where, line in read_jsonl(file):
        yield Question(
            id=f"{file.stem}-{text_of(where, line, 'question_id')}",
            image=picture_of(where, line, "image", folder),
            text=text_of(where, line, "text"),
            answers=(text_of(where, line, "label"),),
            family=family,
        )
