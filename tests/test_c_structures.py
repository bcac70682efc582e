"""The structures of the C headers as Python's ctypes has them: the same fields, at the same places."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pyfastv._capi import FastvParams, FastvReport, TurboParams
from pyfastv.bench.lowlevel.bindings import MAX_CUTS, MAX_STAGES, FastvCut

from c_api import _Grid

HEADERS = Path(__file__).resolve().parents[1] / "native" / "include"
TWINS = {
    "pyfastv_cut": FastvCut,
    "pyfastv_params": FastvParams,
    "pyfastv_report": FastvReport,
    "pyfastv_grid": _Grid,
    "pyfastv_turbo_params": TurboParams,
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
        '#include "pyfastv_turbo.h"\n#include <stdio.h>\nint main(void) {\n'
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
