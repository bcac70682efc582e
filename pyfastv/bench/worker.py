"""A process that holds a model and measures when asked; only one of several computes at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .. import errors
from .._closing import Closing
from ..errors import Error

__all__ = ["Worker", "start_library_worker", "start_runner_worker"]

# glibc moves its mmap threshold as a program goes along, and ggml's buffers then lie more or less well
# aligned, depending on the length of a path: up to 8% of a small model's prefill. With a fixed threshold
# every large buffer has pages of its own.
_STEADY_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536"}

_HERE = Path(__file__).resolve().parent


class Worker(Closing):
    """A process; a context manager that ends it. ``name``: for messages."""

    def __init__(self, name: str, command: Sequence[str], options: Mapping[str, Any]) -> None:
        """Starts it, and waits until its model is loaded. Raises Error."""
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, *command, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | _STEADY_MALLOC,
        )
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def request(self, do: str, **values: Any) -> dict[str, Any]:
        """Send a request and wait for the answer. Raises the Error that the process raised."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # what is told of its end is better
            print(json.dumps({"do": do, **values}), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            reason = ": the system ended it, out of memory perhaps" if status == -9 else ""
            raise Error(f"the process with {self.name} ended with status {status}{reason}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind = getattr(errors, answer["kind"], None)
            if isinstance(kind, type) and issubclass(kind, Error):
                raise kind(answer["error"])
            raise Error(f"the process with {self.name}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process; one that computes is not waited for."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.terminate()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):
                pipe.close()


def start_runner_worker(options: Mapping[str, Any]) -> Worker:
    """A process with a :class:`pyfastv.Runner`: the fields of :class:`pyfastv.bench.runner_process.Options`."""
    # this package, wherever it was found
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pyfastv.bench.runner_process import main; main()"
    )
    return Worker("the runner", ["-c", code, str(_HERE.parents[1])], options)


def start_library_worker(name: str, options: Mapping[str, Any]) -> Worker:
    """A process with the libraries of a folder: the fields of :class:`pyfastv.bench.lowlevel.engine.Options`."""
    # as a package of its own: pyfastv itself would load its libraries
    code = "import sys; sys.path.append(sys.argv[1]); from lowlevel.process import main; main()"
    return Worker(name, ["-c", code, str(_HERE)], options)
