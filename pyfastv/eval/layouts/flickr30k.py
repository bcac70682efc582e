"""Flickr30k: its own .token file, the results.csv that Kaggle has, or Karpathy's dataset_flickr30k.json with splits."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from ...errors import DataError
from ..question import Dataset, Question
from ._files import Source, read_text, records, text_of
from .coco_captions import CAPTION

LOOKS_FOR = "results_20130124.token, results.csv or dataset_flickr30k.json"

# Kaggle's archive has the pictures in a folder within a folder of the same name
_FOLDERS = ("flickr30k_images/flickr30k_images", "flickr30k_images", "flickr30k-images", "images")
_NUMBER = re.compile(r"^\d+\s+")


def recognizes(source: Source) -> bool:
    return bool(_find(source))


def load(source: Source) -> Dataset:
    """One question a picture. Karpathy's file comes first, with his test split unless another one is asked for."""
    file = Source(source.path).choose(_find(source)[:1])
    if file.suffix == ".json":
        captions = _karpathy(file, source.split or "test")
    elif file.suffix == ".csv":
        captions = _comments(file)
    else:
        captions = _tokens(file)
    folder = source.pictures(*_FOLDERS)
    questions = (Question(name, folder / name, CAPTION, tuple(answers)) for name, answers in captions.items())
    return Dataset("flickr30k", source.collect(questions), "cider")


def _find(source: Source) -> list[Path]:
    found = [source.find(name) for name in ("dataset_flickr30k.json", "results_20130124.token")]
    comments = [
        file
        for file in source.find("results.csv")
        if read_text(file).startswith("image_name| comment_number")
    ]
    return [file for files in (*found, comments) for file in files]


def _karpathy(file: Path, split: str) -> dict[str, list[str]]:
    captions = {
        text_of(file, entry, "filename"): [text_of(file, one, "raw") for one in entry.get("sentences", ())]
        for entry in records(file, "images")
        if entry.get("split") == split
    }
    if not captions:
        raise DataError(f"{file}: has no pictures of split {split!r}")
    return captions


def _tokens(file: Path) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(read_text(file).splitlines(), 1):
        key, tab, caption = line.partition("\t")
        if not tab:
            raise DataError(f"{file}, line {number}: is not a picture, a tab and a caption")
        captions.setdefault(key.partition("#")[0], []).append(caption.strip())
    return captions


def _comments(file: Path) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    rows = csv.reader(io.StringIO(read_text(file)), delimiter="|", quoting=csv.QUOTE_NONE)
    for number, row in enumerate(rows, 1):
        if number == 1 or not row:
            continue
        if len(row) < 2 or not row[0].strip():
            raise DataError(f"{file}, line {number}: is not picture| number| caption")
        # one line of the published file lacks its second bar
        caption = row[2] if len(row) > 2 else _NUMBER.sub("", row[1].strip())
        captions.setdefault(row[0].strip(), []).append(caption.strip())
    return captions
