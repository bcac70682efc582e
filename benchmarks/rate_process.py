"""A program of the benchmarks in C++, compiled here and run on the libraries of any folder of this pin."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pyfastv

HERE = Path(__file__).resolve().parent
LLAMA = HERE.parent / "third_party" / "llama.cpp"


def compile_program(source: str, folder: Path, *libraries: str) -> Path:
    """``source``: a file of this folder; the program lies in ``folder`` then."""
    res = folder / Path(source).stem
    command = [os.environ.get("CXX", "c++"), "-O2", "-std=c++17", str(HERE / source)]
    command += [f"-I{LLAMA / path}" for path in ("include", "ggml/include")]
    command += [f"-L{pyfastv.lib_path()}", *(f"-l{name}" for name in libraries), "-pthread", "-o", str(res)]
    subprocess.run(command, check=True)
    return res


class RateProcess:
    """A process of such a program, which answers lines with numbers."""

    def __init__(self, program: Path, libraries: Path, kernels: str | None, *args: str) -> None:
        env = os.environ | {"LD_LIBRARY_PATH": str(libraries)}
        if kernels is not None:
            env["PYFASTV_KERNELS"] = kernels
        self._process = subprocess.Popen(
            [str(program), *args], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, line: str) -> float | None:
        """None: it answered "-". Raises SystemExit if the process died."""
        assert self._process.stdin
        assert self._process.stdout
        print(line, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline().strip()
        if not answer:
            raise SystemExit(f"the process of {line!r} died")
        return None if answer == "-" else float(answer)

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()
