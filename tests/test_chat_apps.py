"""The examples of docs/chat-apps.md that ask a server: each is run as it stands, against a server of the test's own.

The packages are not in the test extra: `make chat-apps` installs them, in an environment of their own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyfastv
from pyfastv import examples

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "chat-apps.md").read_text("utf-8")
EXAMPLES = dict(re.findall(r"^```python (\S+)\n(.*?)^```", PAGE, re.M | re.S))
ADDRESS = "http://127.0.0.1:8080"


PYTHON = ROOT / "build" / "chat-apps" / "bin" / "python"  # `make chat-apps`


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a server of the bundled model."""
    command = [sys.executable, "-m", "pyfastv", "serve", "--port", "0"]
    env = os.environ | {"PYTHONPATH": str(Path(pyfastv.__file__).parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=Path.home()) as server:
        assert server.stdout is not None
        found = re.search(r"http://\S+", server.stdout.readline())
        assert found is not None
        yield found[0].rstrip("/")
        server.terminate()


def test_the_examples_are_those_that_are_run() -> None:
    assert set(EXAMPLES) == {"langchain_openai", "llama_index.llms.openai_like"}
    assert all(f'"{ADDRESS}/v1"' in code for code in EXAMPLES.values())


@pytest.mark.skipif(not PYTHON.exists(), reason="the packages are not installed: `make chat-apps`")
@pytest.mark.parametrize("package", EXAMPLES)
def test_an_example_prints_what_it_says(package: str, address: str, tmp_path: Path) -> None:
    code = EXAMPLES[package]
    shutil.copy(examples.clock, tmp_path)  # the packages are in an environment without pyfastv
    command = [PYTHON, "-c", code.replace(ADDRESS, address)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == re.findall(r"^print\(.*#\s(.*)$", code, re.M)
