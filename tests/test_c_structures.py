"""The structures of the C headers as Python's ctypes has them: the same fields, at the same places."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import pyfastv
from pyfastv import _native
from pyfastv.bench.lowlevel.bindings import MAX_CUTS, MAX_STAGES, FastvCut
from pyfastv.engine.c_structures import FastvParams, FastvReport, SkipParams, TurboParams

from c_api import BAD_PARAMS, OK, Context, Model, _Grid, fastv, last_error
from vision_api import _lib as turbo

HEADERS = Path(__file__).resolve().parents[1] / "native" / "include"
TWINS = {
    "pyfastv_cut": FastvCut,
    "pyfastv_params": FastvParams,
    "pyfastv_report": FastvReport,
    "pyfastv_grid": _Grid,
    "pyfastv_turbo_params": TurboParams,
    "pyfastv_skip_params": SkipParams,
}
COMPILER = shutil.which(os.environ.get("CC", "cc"))


def in_c(folder: Path) -> dict[str, int]:
    """ "structure.field" to its place, "structure" to its size, and the constants, as a C compiler has them."""
    lines = [
        *(f'printf("{name} %zu\\n", sizeof(struct {name}));' for name in TWINS),
        *(
            f'printf("{name}.{field} %zu\\n", offsetof(struct {name}, {field}));'
            for name, twin in TWINS.items()
            for field, *_ in twin._fields_
        ),
        *(f'printf("{name} %d\\n", {name});' for name in ("PYFASTV_MAX_CUTS", "PYFASTV_MAX_STAGES")),
    ]
    source = folder / "sizes.c"
    source.write_text(
        '#include "pyfastv_skip.h"\n#include "pyfastv_turbo.h"\n#include <stdio.h>\nint main(void) {\n'
        + "\n".join(lines)
        + "\nreturn 0; }\n"
    )
    assert COMPILER is not None
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", f"-I{HEADERS}"]
    subprocess.run([COMPILER, *flags, str(source), "-o", str(folder / "sizes")], check=True)
    printed = subprocess.run([folder / "sizes"], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in (line.split() for line in printed.splitlines())}


@pytest.mark.skipif(COMPILER is None, reason="this machine has no C compiler")
def test_ctypes_and_c_agree(tmp_path: Path) -> None:
    """And a C99 compiler reads the headers without a warning."""
    expected = in_c(tmp_path)
    assert (expected.pop("PYFASTV_MAX_CUTS"), expected.pop("PYFASTV_MAX_STAGES")) == (MAX_CUTS, MAX_STAGES)
    found = {name: ctypes.sizeof(twin) for name, twin in TWINS.items()}
    for name, twin in TWINS.items():
        found |= {f"{name}.{field}": getattr(twin, field).offset for field, *_ in twin._fields_}
    assert found == expected


def test_the_libraries_have_the_version_of_the_package() -> None:
    assert fastv.pyfastv_version().decode() == pyfastv.__version__


# every function that reads or writes them, with what it takes besides
@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (FastvParams, lambda params: fastv.pyfastv_parse(b"k=2", 12, params)),
        (FastvParams, lambda params: fastv.pyfastv_attach(None, params)),
        (FastvParams, lambda params: fastv.pyfastv_set_schedule(None, 0, params)),
        (FastvParams, lambda params: fastv.pyfastv_get_schedule(None, 0, params)),
        (FastvParams, lambda params: fastv.pyfastv_default_params(params, params._obj.size)),
        (FastvReport, lambda report: fastv.pyfastv_get_report(None, report)),
        (TurboParams, lambda params: turbo.pyfastv_turbo_parse(b"share=0.5", params)),
        (TurboParams, lambda params: turbo.pyfastv_turbo_attach(None, params)),
        (TurboParams, lambda params: turbo.pyfastv_turbo_default_params(params, params._obj.size)),
    ],
    ids=[
        "parse",
        "attach",
        "set",
        "get",
        "default",
        "report",
        "turbo-parse",
        "turbo-attach",
        "turbo-default",
    ],
)
@pytest.mark.parametrize("off", [-1, 8])
def test_a_size_that_is_not_known_is_refused_with_the_one_that_is(kind: Any, call: Any, off: int) -> None:
    made = kind()
    made.size = ctypes.sizeof(kind) + off
    before = bytes(made)
    assert call(ctypes.byref(made)) == BAD_PARAMS
    said = last_error() if kind is not TurboParams else turbo.pyfastv_turbo_last_error().decode()
    assert f"size = {made.size}, " in said
    assert f"knows {ctypes.sizeof(kind)}:" in said
    assert bytes(made) == before


def test_a_report_that_was_shorter_is_filled_as_far_as_it_goes() -> None:
    """As a program has it that was compiled with an earlier header."""
    model = Model()
    context = Context(model)
    full = context.report()
    assert full.kv_bytes_stock > 0
    longer = (ctypes.c_uint8 * ctypes.sizeof(FastvReport))(*[0xAA] * ctypes.sizeof(FastvReport))
    shorter = FastvReport.from_buffer(longer)
    shorter.size = FastvReport.kv_bytes_used_stock.offset
    assert fastv.pyfastv_get_report(context.pointer, ctypes.byref(shorter)) == OK
    size = ctypes.sizeof(ctypes.c_size_t)
    assert bytes(longer)[size : shorter.size] == bytes(full)[size : shorter.size]
    assert set(bytes(longer)[shorter.size :]) == {0xAA}
    context.close()
    model.close()


def test_rules_have_the_numbers_of_their_places() -> None:
    for kind, names in (("score", _native.SCORES), ("pick", _native.PICKS)):
        find, name = (getattr(fastv, f"pyfastv_{of}") for of in (f"find_{kind}", f"{kind}_name"))
        assert [find(text.encode()) for text in names] == list(range(len(names)))
        assert [name(row) for row in range(len(names))] == [text.encode() for text in names]
        assert (name(-1), name(len(names)), find(b"best"), find(b"")) == (None, None, -1, -1)


def test_rules_stay_where_they_are() -> None:
    """Programs have their numbers compiled in; new ones come last."""
    scores = ("last", "question-mean", "question-max", "all", "last-no-rope", "random", "none")
    picks = ("top-k", "window", "uniform", "grid", "mass", "cover")
    assert (_native.SCORES[: len(scores)], _native.PICKS[: len(picks)]) == (scores, picks)
