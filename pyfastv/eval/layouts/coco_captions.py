"""COCO captions: annotations/captions_val2017.json (or 2014, or train) and the folder of pictures named like it."""

from __future__ import annotations

from ..question import Dataset, Question
from ._files import Source, records, text_of

LOOKS_FOR = "captions_*.json"

CAPTION = "Provide a one-sentence caption for the provided image."
"""As LLaVA-1.5's training data asks for COCO's captions (Liu et al., arXiv 2310.03744)."""


def recognizes(source: Source) -> bool:
    return bool(source.find("captions_*.json"))


def load(source: Source) -> Dataset:
    """One question a picture; its captions are the answers."""
    file = source.choose(source.find("captions_*.json"))
    folder = source.pictures(file.stem.removeprefix("captions_"))
    captions: dict[str, list[str]] = {}
    for entry in records(file, "annotations"):
        captions.setdefault(text_of(file, entry, "image_id"), []).append(text_of(file, entry, "caption"))

    def question(entry: dict[str, object]) -> Question:
        number = text_of(file, entry, "id")
        picture = folder / text_of(file, entry, "file_name")
        return Question(number, picture, CAPTION, tuple(captions.get(number, ())))

    return Dataset("coco-captions", source.collect(map(question, records(file, "images"))), "cider")
