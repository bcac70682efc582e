"""What ggml aborts for is an error where pyfastv calls it, and the process goes on."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import pyfastv

import random_mmproj

# Loads pairs of files one after another, and asks: a line for each, its error or "answered".
LOAD = """
import sys
import numpy as np
from pyfastv import Error, Runner

for files in sys.argv[1:]:
    try:
        with Runner(*files.split(","), n_ctx=512, n_threads=2, fastv=None) as runner:
            runner.ask(np.zeros((168, 224, 3), np.uint8), "a", max_tokens=1)
        print("answered")
    except Error as error:
        print(type(error).__name__, error)
"""

# An abort where no call of ours is under way.
ABORT = """
import ctypes, sys
from pyfastv import Runner

with Runner(n_ctx=64):
    pass
ctypes.CDLL(sys.argv[1]).ggml_abort(b"somewhere.c", 7, b"for a reason")
"""


def python(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-c", program, *map(str, arguments)],
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def edited(path: Path, name: str, old: bytes, new: bytes) -> Path:
    """A copy of a GGUF file with other bytes behind a name."""
    data = path.read_bytes()
    at = data.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name)
    assert data[at : at + len(old)] == old
    assert len(new) == len(old)
    copy = path.with_name(f"{name}-{path.name}")
    copy.write_bytes(data[:at] + new + data[at + len(old) :])
    return copy


def shape(*dims: int) -> bytes:
    """Of a tensor, in a GGUF file."""
    return struct.pack(f"<I{len(dims)}Q", len(dims), *dims)


def uint32(value: int) -> bytes:
    """A value of metadata, in a GGUF file."""
    return struct.pack("<II", 4, value)


def int32s(*values: int) -> bytes:
    """An array of metadata, in a GGUF file."""
    return struct.pack(f"<IIQ{len(values)}i", 9, 5, len(values), *values)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_files_that_ggml_aborts_for_are_model_errors_and_the_process_answers_on(tmp_path: Path) -> None:
    model, mmproj = random_mmproj.write_pair(tmp_path, "LLaVA")
    other, other_mmproj = random_mmproj.write_pair(tmp_path, "Qwen2-VL")
    sections = "qwen2vl.rope.dimension_sections"
    broken = {
        # of an encoder: its header is checked before ggml would abort, when the graph is built or computed
        "mm.0.weight": (model, edited(mmproj, "mm.0.weight", shape(64, 128), shape(128, 64))),
        "v.position_embd": (model, edited(mmproj, "clip.vision.image_size", uint32(112), uint32(140))),
        # a rotation by nothing but the last direction, which only ggml finds
        "GGML_ASSERT(sections": (
            edited(other, sections, int32s(5, 4, 4, 3), int32s(0, 0, 0, 16)),
            other_mmproj,
        ),
    }
    made = python(LOAD, *(f"{one},{two}" for one, two in (*broken.values(), (model, mmproj))))

    assert made.returncode == 0, made.stderr
    *refused, good = made.stdout.splitlines()
    assert good == "answered"
    for reason, line in zip(broken, refused, strict=True):
        assert line.startswith("ModelError "), line
        assert reason in line
        assert "/ggml" not in line, "the build machine's folders are nobody's concern"


@pytest.mark.skipif(sys.platform != "linux", reason="this machine is not Linux: the name of the library")
def test_an_abort_outside_of_our_calls_ends_the_process_with_its_message() -> None:
    made = python(ABORT, Path(pyfastv.__file__).parent / "lib" / "libggml-base.so")

    assert made.returncode == -signal.SIGABRT
    assert "somewhere.c:7: for a reason" in made.stderr
