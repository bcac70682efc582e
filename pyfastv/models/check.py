"""Whether the kernels of this build run on this machine, and are right: a process of its own tries them one by one,
and may die of it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

from .. import _native
from ..errors import Error
from .bundled import bundled_model
from .hub import mmproj_beside

__all__ = ["Findings", "Result", "build_options", "check_machine", "run_checks"]

Command = Callable[[int], Sequence[str]]


@dataclass(frozen=True)
class Result:
    """One thing that was tried."""

    what: str
    """A type of weights, "picture" or "text", or "start" if llama.cpp cannot even be started."""
    where: str
    """What chose the kernel: the kind of buffer that such weights lie in, a device other than the CPU; or a model's
    file."""
    device: str
    """Of a kernel; empty: a model."""
    fault: Literal["", "died", "differs", "failed"] = ""
    """"failed": it is not the kernel's, an error of pyfastv, or the system ended the process; empty: right."""
    problem: str = ""
    """What happened, and at what step."""


@dataclass(frozen=True)
class Findings:
    """What was tried, and what to do about it."""

    results: Sequence[Result]
    build_options: str
    """Of CMake, that leave out what is at fault; empty: nothing, or nothing that an option leaves out."""

    @property
    def right(self) -> bool:
        return not any(result.fault for result in self.results)

    @property
    def starts(self) -> bool:
        """llama.cpp can be used at all."""
        return not any(result.fault and result.what == "start" for result in self.results)

    def to_dict(self) -> dict[str, Any]:
        """``right``, ``results``, ``build_options``."""
        results = [asdict(result) for result in self.results]
        return {"right": self.right, "results": results, "build_options": self.build_options}

    def lines(self) -> list[tuple[str, str]]:
        """For people, (title, text)."""
        right: dict[str, list[str]] = {}
        for result in self.results:
            if not result.fault:
                right.setdefault(result.where, []).append(result.what)
        return [
            *(("right", f"{where}: {', '.join(whats)}") for where, whats in right.items()),
            *self.faults(),
        ]

    def faults(self) -> list[tuple[str, str]]:
        """The lines about what is not right."""
        lines = [("wrong", f"{r.what} in {r.where}, {r.problem}") for r in self.results if r.fault]
        if self.build_options:
            options = f'CMAKE_ARGS="{self.build_options}"'
            lines.append(("build with", f"{options} pip install --force-reinstall --no-deps ."))
        return lines


def check_machine(model: str | None = None, mmproj: str | None = None) -> Findings:
    """Try every kernel, a picture through the bundled pair, and one through ``model`` if given.

    ``mmproj``: None: the only one beside the model, if there is one; without one the model is asked without a picture.
    Raises ModelError for what is no GGUF file, Error if nothing can be tried.
    """
    if model is None and mmproj is not None:
        model = str(bundled_model())
    if model is not None:
        mmproj = mmproj or mmproj_beside(model)
    files = [file for file in (model, mmproj) if file is not None]
    for file in files:
        _native.gguf_header(file)
    # this package, wherever it was found
    code = "import sys; sys.path.insert(0, sys.argv[1]); from pyfastv.models.check_child import main; main(sys.argv[2:])"
    package = str(Path(__file__).resolve().parents[2])
    results = run_checks(lambda start: [sys.executable, "-c", code, package, str(start), *files])
    return Findings(results, build_options(results, _native.build_info()["cpu_flags"]))


def run_checks(command: Command) -> list[Result]:
    """Try everything. ``command``: of the process that begins with the case of a number, from 0.

    It prints a JSON object a line: ``case`` (what, where, device) and ``step`` (text) before it begins what may kill it,
    ``skip`` (the case says nothing), ``fault`` and ``problem`` (of the case), ``end`` when all is done. If it dies, it is
    started again behind the case that it died of. Raises Error if it dies before its first case.
    """
    results: list[Result] = []
    begun = 0
    while True:
        told, end, crashed = _run(command(begun))
        results += told.results
        if told.ended:
            return results
        if told.cases == 0 and results:
            return results  # it dies of what it died of before
        if told.cases == 0:
            raise Error(f"the check cannot be run: its process {end}")
        results.append(Result(*told.case, "died" if crashed else "failed", f"{told.step}: {end}"))
        begun += told.cases


@dataclass
class _Told:
    """What one process said. ``results``: of the cases that it finished."""

    results: list[Result]
    cases: int = 0
    case: tuple[str, str, str] = ("", "", "")
    step: str = ""
    ended: bool = False


def _run(command: Sequence[str]) -> tuple[_Told, str, bool]:
    """What it said, how it ended, and whether it did so by itself."""
    with (
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            told = _read(process.stdout)
        except BaseException:
            process.kill()
            raise
        status = process.wait()
        return told, _end_of(status, stderr), -status in _CRASHES


_CRASHES = {signal.SIGILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP}


def _read(lines: Iterable[str]) -> _Told:
    told = _Told([])
    result: Result | None = None
    for line in lines:
        message = json.loads(line)
        if result is not None and ("case" in message or "end" in message):
            told.results.append(result)
        if "case" in message:
            what, where, device = message["case"]
            result = Result(what, where, device)
            told.case, told.step, told.cases = (what, where, device), "at its beginning", told.cases + 1
        elif "step" in message:
            told.step = message["step"]
        elif "skip" in message:
            result = None
        elif "fault" in message:
            result = Result(*told.case, message["fault"], f"{told.step}: {message['problem']}")
        elif "end" in message:
            told.ended = True
    return told


def _end_of(status: int, stderr: IO[bytes]) -> str:
    """How a process ended, and its last words."""
    if status < 0:
        text = f"died of {signal.Signals(-status).name} ({signal.strsignal(-status)})"
    else:
        text = f"ended with status {status}"
    stderr.seek(0)
    lines = stderr.read().decode(errors="replace").strip().splitlines()
    return f"{text}: {lines[-1].strip()}" if lines else text


# what leaves out a kernel

_BUFFERS = {"CPU_REPACK": "-DGGML_CPU_REPACK=OFF", "CPU_KLEIDIAI": "-DGGML_CPU_KLEIDIAI=OFF"}
_BACKENDS = {"MTL": "METAL", "ROCM": "HIP"}  # where the name of a device is not that of its option
# -march=native has AMX, whatever GGML_AMX_INT8 says
_AMX_NATIVE = ["-DCMAKE_C_FLAGS=-mno-amx-int8", "-DCMAKE_CXX_FLAGS=-mno-amx-int8"]
_PORTABLE = ["-DGGML_NATIVE=OFF"]
_BASELINE = [f"-DGGML_{feature}=OFF" for feature in ("NATIVE", "SSE42", "AVX", "AVX2", "BMI2", "FMA", "F16C")]


def build_options(results: Iterable[Result], cpu_flags: str) -> str:
    """Options of CMake that leave out what died or differs. ``cpu_flags``: that ggml's kernels were compiled with."""
    faults = [result for result in results if result.fault in ("died", "differs")]
    places = {result.where for result in faults if result.device == "CPU"}
    devices = {result.device for result in faults} - {"CPU", ""}
    native = "native" in cpu_flags

    options = [_BUFFERS[place] for place in sorted(places & _BUFFERS.keys())]
    for device in sorted(devices):
        name = re.sub(r"\d+$", "", device).upper()
        options.append(f"-DGGML_{_BACKENDS.get(name, name)}=OFF")

    # a model alone at fault has met a kernel that is no product
    if places - _BUFFERS.keys() - {"AMX"} or (faults and not places and not devices):
        if native:
            options += _PORTABLE  # without AMX, too
        elif "-m" in cpu_flags:
            options += _BASELINE
    elif "AMX" in places:
        options += _AMX_NATIVE if native else ["-DGGML_AMX_INT8=OFF"]
    return " ".join(options)
