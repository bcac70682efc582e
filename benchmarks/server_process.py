"""Start ``pyfastv serve`` for a benchmark."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Started", "start"]


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
