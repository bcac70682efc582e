"""What the layouts share: finding files, reading JSON, and telling what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..._checks import shown
from ...errors import DataError
from ...inputs.uris import is_data_uri
from ..question import Question

__all__ = [
    "SHORT_ANSWER",
    "Source",
    "picture_of",
    "read_json",
    "read_jsonl",
    "read_text",
    "records",
    "text_of",
]

SHORT_ANSWER = "Answer the question using a single word or phrase."
"""What LLaVA-1.5's authors append to questions with short answers (Liu et al., arXiv 2310.03744)."""

_DEPTH = 3  # folders below the given one that are searched
_LONGEST_NAME = 4096  # letters of a path


@dataclass(frozen=True)
class Source:
    """Where a dataset is, and what was asked of it."""

    path: Path
    split: str | None = None
    images: Path | None = None
    limit: int | None = None

    def find(self, *patterns: str) -> list[Path]:
        """Files below the folder whose name fits one of the patterns, sorted."""
        if not self.path.is_dir():
            return []
        found: set[Path] = set()
        for pattern in patterns:
            for depth in range(_DEPTH + 1):
                found |= {file for file in self.path.glob("*/" * depth + pattern) if file.is_file()}
        return sorted(found)

    def choose(self, files: Sequence[Path]) -> Path:
        """The file of the split; without one, the validation file, or else the first. Raises DataError."""
        if not files:
            raise DataError(f"{self.path}: has no file of this layout")
        if self.split is not None:
            files = [file for file in files if self.split in file.name]
            if not files:
                raise DataError(f"{self.path}: no file with {self.split!r} in its name fits")
        return next((file for file in files if "val" in file.name.lower()), files[0])

    def pictures(self, *folders: str) -> Path:
        """The first of these folders that exists; None of them: the dataset's own folder."""
        root = self.path if self.path.is_dir() else self.path.parent
        if self.images is not None:
            if not self.images.is_dir():
                raise DataError(f"{self.images}: no such folder of pictures")
            root = self.images
        bases = [root, root / "images", root.parent]
        return next((base / name for name in folders for base in bases if (base / name).is_dir()), root)

    def collect(self, questions: Iterable[Question]) -> tuple[Question, ...]:
        """As many as are wanted."""
        return tuple(islice(questions, self.limit))


def read_text(file: Path) -> str:
    """A text file. Raises DataError."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from None


def read_json(file: Path) -> Any:
    """Raises DataError."""
    try:
        return json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: is not JSON: {error}") from None


def read_jsonl(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) of every line that is not empty. Raises DataError."""
    # not splitlines(): JSON strings may have what that takes for ends of lines, too
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise DataError(f"{where}: is not a JSON object")
        yield where, value


def picture_of(where: object, record: Mapping[str, Any], key: str, folder: Path) -> Path | str:
    """The path of a picture, or its data URI as it is. Raises DataError."""
    name = text_of(where, record, key)
    if is_data_uri(name):
        return str(name)
    if name.lower().startswith(("http://", "https://")):
        raise DataError(
            f"{where}: {key!r} is an address: download the picture, and name its file; got {shown(name)}"
        )
    if len(name) > _LONGEST_NAME:
        raise DataError(
            f"{where}: {key!r} is no path, of {len(name):,} characters: base64 has to be a data URI, "
            f"data:image/png;base64,<data>; got {name[:60]!r}..."
        )
    return folder / name


def records(file: Path, name: str | None = None) -> list[dict[str, Any]]:
    """The list of objects in a JSON file, or under a name in it. Raises DataError."""
    value = read_json(file)
    if name is not None:
        value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(f"{file}: has no list of objects" + ("" if name is None else f" {name!r}"))
    return value


def text_of(where: object, record: Mapping[str, Any], key: str, kind: Callable[[Any], Any] = str) -> Any:
    """A value that has to be there, as a string or an int. Raises DataError."""
    if key not in record:
        raise DataError(f"{where}: has no {key!r}")
    value = record[key]
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        try:
            return kind(value)
        except ValueError:
            pass
    wanted = "text or a whole number" if kind is str else "a whole number"
    raise DataError(f"{where}: {key!r} must be {wanted}; got {shown(value)}")
