"""The scripts in benchmarks/ are run by hand: what they import must at least be there."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import pyfastv

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if "__main__" in path.read_text("utf-8"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_starts(name: str) -> None:
    env = os.environ | {"PYTHONPATH": str(Path(pyfastv.__file__).parents[1])}
    command = [sys.executable, str(FOLDER / name), "--help"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tempfile.gettempdir())
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")


def test_the_page_of_the_benchmarks_names_every_script() -> None:
    page = (FOLDER / "README.md").read_text("utf-8")
    assert [name for name in SCRIPTS if f"`{name}`" not in page] == []
