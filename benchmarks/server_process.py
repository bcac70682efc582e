"""Start ``pyfastv serve``, or llama.cpp's own server, for a benchmark."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SECONDS", "Started", "start", "start_llama_server"]

SECONDS = 600
"""That a server may take to start, or to answer."""


@dataclass
class Started:
    """A server of its own process."""

    url: str
    pid: int


@contextmanager
def start(*options: str) -> Iterator[Started]:
    """A server of the bundled model on a free port, ended afterwards."""
    command = [sys.executable, "-m", "pyfastv", "serve", "--port", "0", *options]
    # not the checkout, whose pyfastv may not be built
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path.home()) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+", process.stdout.readline())
            if found is None:
                raise SystemExit("the server did not start")
            yield Started(found[0], process.pid)
        finally:
            process.terminate()


@contextmanager
def start_llama_server(
    server: Path, *options: object, libraries: Path | None = None, setting: str | None = None
) -> Iterator[str]:
    """The address of a llama-server on a free port, ended afterwards. ``libraries``: a folder of others than those beside
    it; ``setting``: LLAMA_FASTV."""
    environment = {name: value for name, value in os.environ.items() if name != "LLAMA_FASTV"}
    if libraries is not None:
        environment["DYLD_LIBRARY_PATH" if sys.platform == "darwin" else "LD_LIBRARY_PATH"] = str(libraries)
    if setting is not None:
        environment["LLAMA_FASTV"] = setting
    command = [str(word) for word in (server, "--host", "127.0.0.1", "--port", 0, *options)]
    with (
        tempfile.NamedTemporaryFile("w+") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            deadline = time.monotonic() + SECONDS
            while (found := re.search(r"listening on (http://\S+)", Path(log.name).read_text())) is None:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"llama-server did not start:\n{Path(log.name).read_text()[-2000:]}")
                time.sleep(0.1)
            yield found[1]
        finally:
            process.terminate()
