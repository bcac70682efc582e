"""llama-cpp-python's low-level bindings on the libraries of a folder, and pyfastv's C structures."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path
from typing import Any


class EngineError(Exception):
    """Something cannot be loaded or run; an engine that was loaded stays usable."""


class FastvParams(ctypes.Structure):
    """struct pyfastv_params of pyfastv.h."""

    _fields_ = [
        ("k", ctypes.c_int32),
        ("drop", ctypes.c_float),
        ("score", ctypes.c_int),  # 0: FastV's own, the last prompt token
        ("pick", ctypes.c_int),  # 0: FastV's own, top-k
        ("window", ctypes.c_int32),
    ]


class FastvReport(ctypes.Structure):
    """struct pyfastv_report of pyfastv.h."""

    _fields_ = [
        ("k", ctypes.c_int32),
        ("drop", ctypes.c_float),
        ("n_visual", ctypes.c_int32),
        ("n_visual_kept", ctypes.c_int32),
        ("n_pending", ctypes.c_int32),
        ("t_stage0_ms", ctypes.c_double),
        ("t_choose_ms", ctypes.c_double),
        ("t_later_ms", ctypes.c_double),
        ("n_stages", ctypes.c_int32),
        ("kv_cell_bytes", ctypes.c_size_t * 2),
        ("kv_cells_used", ctypes.c_int32 * 2),
        ("kv_cells_size", ctypes.c_int32 * 2),
    ]


def load_bindings(folder: Path) -> tuple[Any, Any]:
    """The modules llama_cpp.llama_cpp and llama_cpp.mtmd_cpp, bound to the libraries in `folder`.

    Raises EngineError if one of the libraries is not there.
    """
    suffix = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
    for name in ("llama", "mtmd"):
        if not (folder / f"lib{name}{suffix}").exists():
            raise EngineError(f"{folder}: no lib{name}{suffix}")
    os.environ["LLAMA_CPP_LIB_PATH"] = os.environ["MTMD_CPP_LIB"] = str(folder)
    from llama_cpp import llama_cpp, mtmd_cpp

    return llama_cpp, mtmd_cpp


def foreign_libraries(folder: Path) -> list[str]:
    """Loaded llama.cpp libraries that are not from `folder`, as a wrong rpath brings them. Linux only."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    loaded = set(re.findall(r"(/\S*/lib(?:llama|mtmd|ggml)[\w.-]*)", maps))
    return sorted(path for path in loaded if Path(path).parent != folder)
