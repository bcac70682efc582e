"""The model that comes with the package."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import NamedTuple

__all__ = ["Example", "bundled_examples", "bundled_mmproj", "bundled_model", "bundled_picture"]


def bundled_model() -> Path:
    """The bundled language model, tiny-llava (Q4_K_M); its model card lies beside it."""
    return _data() / "tiny-llava-Q4_K_M.gguf"


def bundled_mmproj() -> Path:
    """The vision encoder and projector of the bundled model (Q8_0)."""
    return _data() / "mmproj-tiny-llava-q8_0.gguf"


class Example(NamedTuple):
    """A question about a bundled picture, with the right answer."""

    picture: Path
    question: str
    answer: str


def bundled_examples() -> list[Example]:
    """Questions that the bundled model answers right, also with FastV at k=2 and drop=0.5."""
    entries = json.loads((_data() / "examples.json").read_text(encoding="utf-8"))
    return [Example(_data() / entry["image"], entry["question"], entry["answer"]) for entry in entries]


def bundled_picture(name: str) -> Path:
    """One of those that :mod:`pyfastv.examples` has."""
    return _data() / name


def _data() -> Path:
    return Path(str(resources.files("pyfastv"))) / "data"
