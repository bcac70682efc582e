"""Datasets as people have them on disk: one module a layout, and the choice among them."""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import DataError
from ..question import Dataset
from . import coco_captions, flickr30k, gqa, jsonl, mme, pictures, pope, textvqa, vqav2
from ._files import Source

__all__ = ["LAYOUTS", "load_dataset"]

LAYOUTS = {
    "jsonl": jsonl,
    "vqav2": vqav2,
    "textvqa": textvqa,
    "pope": pope,
    "gqa": gqa,
    "mme": mme,
    "coco-captions": coco_captions,
    "flickr30k": flickr30k,
    "pictures": pictures,
}
"""Modules with ``LOOKS_FOR`` (text), ``recognizes(source)`` and ``load(source)``, by the command line's names."""


def load_dataset(
    path: str | os.PathLike[str],
    *,
    layout: str | None = None,
    split: str | None = None,
    images: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> Dataset:
    """Read a folder as it was downloaded and unpacked, or a JSONL file.

    ``layout``: of :data:`LAYOUTS`; None: recognized by the files in the folder. ``split``: part of a file's name, as
    "train", where there are several; otherwise validation files come first. ``images``: the folder with the pictures,
    if it is not in this one. ``limit``: only the first questions, whose pictures alone have to be there.

    Raises DataError: nothing recognized, or several layouts; a file that is not as expected; a picture that is missing.
    """
    source = Source(
        Path(os.fsdecode(path)), split, None if images is None else Path(os.fsdecode(images)), limit
    )
    if not source.path.exists():
        raise DataError(f"{source.path}: no such file or folder")
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1; got {limit}")
    name = layout or _recognize(source)
    if name not in LAYOUTS:
        raise DataError(f"layout must be one of {', '.join(LAYOUTS)}; got {layout!r}")
    dataset = LAYOUTS[name].load(source)
    if not dataset.questions:
        raise DataError(f"{source.path}: has no questions, read as {name}")
    ids = {question.id for question in dataset.questions}
    if len(ids) < len(dataset.questions):
        raise DataError(f"{source.path}: several questions have the same id")
    for question in dataset.questions:
        # not is_file(): it raises for names that are too long
        if isinstance(question.image, Path) and not os.path.isfile(question.image):
            raise DataError(
                f"question {question.id[:200]}: its picture {str(question.image)[:500]} is missing"
            )
    return dataset


def _recognize(source: Source) -> str:
    found = [name for name, layout in LAYOUTS.items() if layout.recognizes(source)]
    if not found:
        known = "; ".join(f"{name}: {layout.LOOKS_FOR}" for name, layout in LAYOUTS.items())
        raise DataError(f"{source.path}: not recognized as a dataset. Looked for {known}")
    if len(found) > 1:
        raise DataError(f"{source.path}: may be {' or '.join(found)}: say which with layout (--layout)")
    return found[0]
