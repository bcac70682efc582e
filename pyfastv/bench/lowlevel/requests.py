"""How a process that measures is talked to: requests on stdin, answers on stdout, JSON objects, one a line."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Stopwatch", "Timing", "peak_bytes", "reset_peak", "serve"]

Make = Callable[[dict[str, Any]], Mapping[str, Callable[..., dict[str, Any]]]]


@dataclass(frozen=True)
class Timing:
    """Wall and CPU milliseconds; CPU is summed over all threads of the process."""

    wall_ms: float
    cpu_ms: float


class Stopwatch:
    """Measures from its construction on."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> Timing:
        return Timing(1e3 * (time.perf_counter() - self._wall), 1e3 * (time.process_time() - self._cpu))


def reset_peak() -> bool:
    """Forget the peak of resident memory so far. False where that is not possible (other than Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_bytes() -> int | None:
    """Peak of this process' resident memory since :func:`reset_peak`, or since its start; None if unknown."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def serve(make: Make) -> None:
    """Answer the requests on stdin until its end.

    ``make`` gets the options (the program's last argument, JSON) and gives the requests by name. A request is
    ``{"do": name, ...}``; the first answer, before any request, is ``{}`` or tells why there will be none. What goes
    wrong is answered with ``{"error": ..., "kind": name of the exception}``, and the process goes on.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the process that asks
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not get between the answers

    def answer(run: Callable[[], Any]) -> Any:
        result, told = None, {}
        try:
            result = run()
            told = result if isinstance(result, dict) else {}
        except Exception as error:
            told = {"error": str(error) or type(error).__name__, "kind": type(error).__name__}
        print(json.dumps(told), file=answers, flush=True)
        return result

    requests: Mapping[str, Callable[..., dict[str, Any]]] | None = None

    def prepare() -> None:
        nonlocal requests
        requests = make(json.loads(sys.argv[-1]))

    answer(prepare)
    if requests is None:
        return
    for line in sys.stdin:
        request = json.loads(line)
        name = request.pop("do")
        answer(lambda name=name, request=request: requests[name](**request))  # type: ignore[misc]
