"""A folder of pictures alone: every one is asked to be described. For tuning, which needs no answers."""

from __future__ import annotations

from ..question import Dataset, Question
from ._files import Source

LOOKS_FOR = "a folder with nothing but pictures"

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".avif"}
_QUESTION = "Describe the image."


def recognizes(source: Source) -> bool:
    if not source.path.is_dir():
        return False
    entries = [entry for entry in source.path.iterdir() if not entry.name.startswith(".")]
    return bool(entries) and all(entry.suffix.lower() in _SUFFIXES for entry in entries)


def load(source: Source) -> Dataset:
    """The pictures of the folder, sorted by name; ids are the names."""
    folder = source.pictures()
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES)
    return Dataset("pictures", source.collect(Question(file.name, file, _QUESTION) for file in files), "auto")
