"""MME: a folder a category, and in it, for each picture, a text file with two questions, "question<TAB>Yes"."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...errors import DataError
from ..question import Dataset, Question
from ._files import Source, read_text

LOOKS_FOR = "category folders (existence, count, ...) with a text file of questions beside each picture"

_CATEGORIES = (
    *(
        "existence",
        "count",
        "position",
        "color",
        "posters",
        "celebrity",
        "scene",
        "landmark",
        "artwork",
        "OCR",
    ),
    *("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
)
_SUFFIXES = (".jpg", ".png", ".jpeg")


def recognizes(source: Source) -> bool:
    return bool(_categories(source))


def load(source: Source) -> Dataset:
    """Families are the categories. The questions say themselves how to answer.

    A score is the share of right answers; MME's own sum, which adds the share of pictures with both right, is not made.
    """

    def questions() -> Iterator[Question]:
        for folder in _categories(source):
            if source.split is None or source.split == folder.name:
                for file in _texts(folder):
                    yield from _questions(file, folder)

    return Dataset("mme", source.collect(questions()), "yes-no")


def _categories(source: Source) -> list[Path]:
    if not source.path.is_dir():
        return []
    folders = [source.path, *sorted(path for path in source.path.iterdir() if path.is_dir())]
    found = [folder / name for folder in folders for name in _CATEGORIES if (folder / name).is_dir()]
    return [folder for folder in found if _texts(folder)]


def _texts(folder: Path) -> list[Path]:
    """Some categories have their questions in a folder of their own, beside that of the pictures."""
    return sorted([*folder.glob("*.txt"), *folder.glob("questions_answers_YN/*.txt")])


def _questions(file: Path, folder: Path) -> Iterator[Question]:
    pictures = folder / "images" if file.parent != folder else folder
    picture = next(
        (path for path in map((pictures / file.stem).with_suffix, _SUFFIXES) if path.is_file()), None
    )
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if not line.strip():
            continue
        text, tab, answer = line.rpartition("\t")
        if not tab:
            raise DataError(f"{file}, line {number}: is not a question, a tab and an answer")
        yield Question(
            id=f"{folder.name}/{file.stem}/{number}",
            image=picture or (pictures / file.stem).with_suffix(_SUFFIXES[0]),
            text=text.strip(),
            answers=(answer.strip(),),
            family=folder.name,
        )
