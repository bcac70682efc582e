"""benchmarks/devices.py: what it tells of two devices that differ. A case that ends its process is a row of the table."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pytest

import devices
from devices import Arrays, Row, compare

TOLERANCE = 0.05


def pruned(**changes: np.ndarray) -> Arrays:
    found = {
        "kept 0": np.arange(0, 20, 2),
        "scores 0": np.linspace(0, 1, 20, dtype=np.float32),
        "logits": np.eye(3, 5, dtype=np.float32),
    }
    return {**found, **{name.replace("_", " "): value for name, value in changes.items()}}


def row_of(a: Arrays, b: Arrays) -> Row:
    return compare(Row("model", "case"), a, b, TOLERANCE)


def test_the_same_is_identical() -> None:
    row = row_of(pruned(), pruned())
    assert (row.kept, row.scores, row.first, row.choices) == ("10, 0", "0", "0.0e+00", "3 of 3")
    assert row.note == "identical"
    assert not row.failed


def test_tokens_that_one_device_alone_keeps_are_counted() -> None:
    kept = np.arange(0, 20, 2)
    kept[:3] = 1, 3, 5
    row = row_of(pruned(), pruned(kept_0=kept))
    assert row.kept == "10, 6"
    assert not row.failed


def test_logits_that_differ_have_failed_where_the_same_was_kept() -> None:
    other = np.eye(3, 5, k=1, dtype=np.float32)
    assert row_of(pruned(), pruned(logits=other)).failed
    assert row_of(pruned(), pruned(logits=other)).choices == "0 of 3"
    assert not row_of(pruned(), pruned(logits=other, kept_0=np.arange(10))).failed
    nearly = np.eye(3, 5, dtype=np.float32) * np.float32(1.01)
    assert row_of(pruned(), pruned(logits=nearly)).first == "1.0e-02"
    assert not row_of(pruned(), pruned(logits=nearly)).failed


@pytest.mark.parametrize("broken", [np.full((3, 5), np.nan, np.float32), np.eye(2, 5, dtype=np.float32)])
def test_what_is_no_number_or_of_another_shape_has_failed(broken: np.ndarray) -> None:
    assert row_of({"rows": np.eye(3, 5)}, {"rows": broken}).failed


def test_an_error_has_failed_unless_both_devices_have_it() -> None:
    error: Arrays = {"error": np.array("UnsupportedModelError: no")}
    row = row_of(pruned(), error)
    assert row.failed
    assert "b: UnsupportedModelError: no" in row.line()
    assert not row_of(error, error).failed


def test_settings_that_keep_all_are_told_from_those_that_do_not() -> None:
    keeping = [spec for spec in devices.SETTINGS if devices.keeps_all(spec)]
    assert keeping == ["off", "k=2,drop=0"]


def test_a_case_that_ends_its_process_is_a_row_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place of the script one that writes every case, but the second and the fourth, at which it dies."""
    script = tmp_path / "dying.py"
    script.write_text(
        "import json, os, sys\n"
        "options = json.loads(sys.argv[2])\n"
        "for number in range(options['start'], 6):\n"
        "    if number in (1, 3):\n"
        "        print('it was number', number, flush=True)\n"
        "        os._exit(9)\n"
        "    open(f\"{options['folder']}/{number:03}.npz\", 'wb').write(open(sys.argv[0] + '.npz', 'rb').read())\n"
    )
    np.savez(tmp_path / "dying.py.npz", texts=np.array(["right"]))
    monkeypatch.setattr(devices, "__file__", str(script))
    cases = devices.cases_of(1, ["off", "k=2,drop=0"])
    assert len(cases) == 6
    args = argparse.Namespace(
        pair=[["model", "mmproj"]],
        settings=["off", "k=2,drop=0"],
        threads=1,
        flash_attention="off",
        cache_type="f16",
    )
    folder = tmp_path / "found"
    folder.mkdir()
    devices.run("cpu", folder, args, time.monotonic() + 60)
    found = [devices.read(folder, number) for number in range(6)]
    assert [number for number in range(6) if "error" in found[number]] == [1, 3]
    assert str(found[3]["error"]) == "the process ended with status 9: it was number 3"
    assert all(found[number]["texts"].tolist() == ["right"] for number in (0, 2, 4, 5))
