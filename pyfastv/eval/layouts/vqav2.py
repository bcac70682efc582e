"""VQAv2, from visualqa.org: questions, annotations, and the pictures of COCO 2014."""

from __future__ import annotations

from pathlib import Path

from ...errors import DataError
from ..question import Dataset, Question
from ._files import SHORT_ANSWER, Source, read_json, records, text_of

LOOKS_FOR = "v2_OpenEnded_mscoco_*_questions.json"


def recognizes(source: Source) -> bool:
    return bool(source.find("v2_OpenEnded_mscoco_*_questions.json"))


def load(source: Source) -> Dataset:
    """Families are VQAv2's answer types: yes/no, number, other."""
    pairs = {
        file: annotations
        for file in source.find("v2_OpenEnded_mscoco_*_questions.json")
        for annotations in source.find(_annotations_name(file))[:1]
    }
    if not pairs:
        raise DataError(f"{source.path}: has questions of VQAv2, but no v2_mscoco_*_annotations.json of them")
    file = source.choose(list(pairs))
    answers = {
        text_of(pairs[file], entry, "question_id"): entry for entry in records(pairs[file], "annotations")
    }
    subset = str(read_json(file).get("data_subtype", "val2014"))
    folder = source.pictures(subset)

    def question(entry: dict[str, object]) -> Question:
        number = text_of(file, entry, "question_id")
        annotation = answers.get(number)
        given = annotation.get("answers") if annotation is not None else None
        if annotation is None or not isinstance(given, list):
            raise DataError(f"{pairs[file]}: has no answers to question {number}")
        return Question(
            id=number,
            image=folder / f"COCO_{subset}_{text_of(file, entry, 'image_id', int):012}.jpg",
            text=text_of(file, entry, "question"),
            answers=tuple(text_of(pairs[file], one, "answer") for one in given),
            family=str(annotation.get("answer_type", "")),
        )

    return Dataset("vqav2", source.collect(map(question, records(file, "questions"))), "vqa", SHORT_ANSWER)


def _annotations_name(questions: Path) -> str:
    return questions.name.replace("v2_OpenEnded_", "v2_").replace("_questions.json", "_annotations.json")
