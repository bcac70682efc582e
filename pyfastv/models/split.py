"""Models in several files, ``<name>-00001-of-00003.gguf`` and so on, as llama.cpp splits them."""

from __future__ import annotations

import re

__all__ = ["part_names", "part_number"]

_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})(\.gguf)$", re.ASCII | re.IGNORECASE)


def part_number(file: str) -> int | None:
    """Which part a file is, from 1; None: it is no part."""
    split = _SPLIT.search(file)
    return int(split[1]) if split else None


def part_names(file: str) -> list[str]:
    """All parts of a model in order, by the name or path of any of them; a file that is no part alone."""
    split = _SPLIT.search(file)
    if split is None:
        return [file]
    stem, count, suffix = file[: split.start()], split[2], split[3]
    return [f"{stem}-{number:05}-of-{count}{suffix}" for number in range(1, int(count) + 1)]
