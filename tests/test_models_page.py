"""The table of families in docs/models.md: tokens of a photo as libmtmd counts them, layers and refusals as the tables
below it and README have them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pyfastv

import random_mmproj
from narrow_geometry import write_narrow
from random_mmproj import FAMILIES

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "models.md").read_text("utf-8")
PHOTO = np.full((768, 1024, 3), 127, np.uint8)

# the geometry that has a family's published preprocessing
GEOMETRIES = {
    "LLaVA 1.5": "tiny",
    "LLaVA 1.6 (NeXT)": "llava-next-7b",
    "SmolVLM2 500M": "smolvlm2-500m",
    "Qwen2.5-VL": "qwen2.5-vl-3b",
    "Qwen3-VL": "qwen3-vl-2b",
    "Qwen3.5, 3.6, 3.8": "qwen3-vl-2b",  # the same projector, patches of 16 pixels, 2 x 2 to a token
    "Gemma 3, MedGemma": "gemma-3-4b",
    "InternVL 2.5, 3, 3.5": "internvl3-1b",
}
# of the others: the published side of a picture, patch, and what else counts
PUBLISHED = {
    "Qwen2-VL": (FAMILIES["Qwen2-VL"], 14),
    "Mistral Small 3.1 and 3.2, Ministral 3": (replace(FAMILIES["Pixtral"], image_size=1540), 14),
    "MiniCPM-V 2.6": (
        replace(
            FAMILIES["MiniCPM-V"],
            image_size=448,
            extra={"minicpmv_version": np.int32(3), "minicpmv_query_num": 64},
        ),
        14,
    ),
    "Janus-Pro": (replace(FAMILIES["Janus-Pro"], image_size=384), 16),
}


def section(heading: str) -> str:
    return PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def rows(heading: str) -> Iterator[list[str]]:
    """The cells of a section's table, without its head."""
    lines = re.findall(r"^\| (.*) \|$", section(heading), re.M)
    yield from (line.split(" | ") for line in lines[1:])


def code(cell: str) -> list[str]:
    return re.findall(r"`([\w.-]+)`", cell)


TABLE = {row[0]: row[1:] for row in rows("Does it work with my model?")}


def counted(model: Path, mmproj: Path) -> int:
    """Visual tokens of the photo: a context that is too small for it is refused before anything is encoded."""
    with (
        pyfastv.Runner(model, mmproj, n_ctx=64, n_threads=1, fastv=None) as runner,
        pytest.raises(pyfastv.ContextLengthError) as refused,
    ):
        runner.ask(PHOTO, "What is it?", max_tokens=1)
    found = re.search(r"\((\d+) of them visual\)", str(refused.value))
    assert found is not None, refused.value
    return int(found[1])


def test_every_number_of_tokens_is_counted_here() -> None:
    told = {name for name, (tokens, *_) in TABLE.items() if tokens != "-"}
    assert told == {*GEOMETRIES, *PUBLISHED}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_photo_has_as_many_tokens_by_the_geometries(name: str, tmp_path: Path) -> None:
    assert str(counted(*write_narrow(GEOMETRIES[name], tmp_path))) == TABLE[name][0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_photo_has_as_many_tokens_by_the_published_sizes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, patch = PUBLISHED[name]
    monkeypatch.setattr(random_mmproj, "PATCH", patch)
    monkeypatch.setitem(FAMILIES, name, family)
    assert str(counted(*random_mmproj.write_pair(tmp_path, name))) == TABLE[name][0]


def test_the_first_layers_are_those_of_the_table_of_language_models() -> None:
    first = {}
    for row in rows("Language models"):
        number = re.search(r"\b\d+\b", row[-1])
        first |= {name: number and number[0] for name in code(row[0])}
    working = {name: row for name, row in TABLE.items() if row[-1].startswith("works")}
    assert len(working) > 10
    for name, (_, k, architectures, _, _) in working.items():
        assert {first[arch] for arch in code(architectures)} == {None if k == "`info`" else k}, name


def test_what_is_refused_is_in_the_table_of_refusals_and_in_the_readme() -> None:
    refused = {name for row in rows("Refused") for name in code(row[0])}
    families = {name: row for name, row in TABLE.items() if not row[-1].startswith("works")}
    assert families
    for name, (_, k, architectures, _, why) in families.items():
        assert (k, why.startswith("refused: ")) == ("-", True), name
        assert set(code(architectures)) <= refused, name
    readme = (ROOT / "README.md").read_text("utf-8").partition("\n## Models\n")[2].partition("\n## ")[0]
    assert refused - set(code(readme)) == set()
