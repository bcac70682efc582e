"""docs/memory.md has what benchmarks/memory_needed.py prints, and that counts what is in the files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyfastv import theory
from pyfastv.bench.geometry.files import make_geometry
from pyfastv.bench.geometry.sizes import GEOMETRIES
from pyfastv.models.header import read_model

import memory_needed

PAGE = (Path(__file__).parents[1] / "docs" / "memory.md").read_text("utf-8")


def test_the_page_has_the_tables_that_the_script_prints() -> None:
    for rows in (memory_needed.needed(4096), memory_needed.fitting(4096, [8, 16, 32])):
        table = memory_needed.markdown(rows)
        assert len(table.splitlines()) > 8
        assert f"\n{table}\n" in PAGE


def test_bytes_are_those_of_the_files(tmp_path: Path) -> None:
    files = read_model(*map(str, make_geometry("tiny", tmp_path, "Q4_0")))
    tiny = GEOMETRIES["tiny"]
    assert memory_needed.weight_bytes(tiny, "Q4_0") == files.weight_bytes
    assert memory_needed.encoder_bytes(tiny) == files.mmproj_bytes
    rows = [100] * files.decoder.n_layer
    assert memory_needed.cache_bytes(tiny, 100) == theory.kv_bytes(files.decoder, rows)


@pytest.mark.parametrize("name", memory_needed.published())
def test_a_picture_pruned_fills_less(name: str) -> None:
    whole, half = memory_needed.picture_bytes(name)
    assert whole / 2 < half < whole


def test_what_fits_does_and_the_next_larger_does_not() -> None:
    geometry = GEOMETRIES["llava-1.5-7b"]
    needed = memory_needed.weight_bytes(geometry, "Q8_0") + memory_needed.encoder_bytes(geometry)
    memory = (needed + memory_needed.cache_bytes(geometry, 1024)) / memory_needed.SHARE / memory_needed.GIB
    assert memory_needed.largest_that_fits(geometry, 1024, memory * 1.001) == "Q8_0"
    assert memory_needed.largest_that_fits(geometry, 1024, memory * 0.999) == "Q4_K"
    assert memory_needed.largest_that_fits(geometry, 1024, 1) == "-"
