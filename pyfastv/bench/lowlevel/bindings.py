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


MAX_CUTS = 8
MAX_STAGES = MAX_CUTS + 1


class Sized(ctypes.Structure):
    """Its first field is its size."""

    def __init__(self) -> None:
        super().__init__(size=ctypes.sizeof(self))


class FastvCut(ctypes.Structure):
    """struct pyfastv_cut of pyfastv.h."""

    _fields_ = [
        ("layer", ctypes.c_int32),
        ("drop", ctypes.c_float),
        ("score", ctypes.c_int32),
        ("pick", ctypes.c_int32),
        ("score_number", ctypes.c_double),
        ("pick_number", ctypes.c_double),
        ("weigh", ctypes.c_bool),
        ("merge", ctypes.c_bool),
    ]


class FastvParams(Sized):
    """struct pyfastv_params of pyfastv.h."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("n_cuts", ctypes.c_int32),
        ("cuts", FastvCut * MAX_CUTS),
        ("recall", ctypes.c_float),
        ("n_cells", ctypes.c_int32),
    ]


class FastvReport(Sized):
    """struct pyfastv_report of pyfastv.h."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("n_visual", ctypes.c_int32),
        ("n_recalled", ctypes.c_int32),
        ("n_pending", ctypes.c_int32),
        ("t_stage0_ms", ctypes.c_double),
        ("t_choose_ms", ctypes.c_double),
        ("t_later_ms", ctypes.c_double),
        ("archive_bytes", ctypes.c_size_t),
        ("similarity_bytes", ctypes.c_size_t),
        ("n_stages", ctypes.c_int32),
        ("first_layer", ctypes.c_int32 * MAX_STAGES),
        ("n_visual_entered", ctypes.c_int32 * MAX_STAGES),
        ("kv_bytes_used", ctypes.c_size_t * MAX_STAGES),
        ("kv_bytes", ctypes.c_size_t * MAX_STAGES),
        ("kv_bytes_used_stock", ctypes.c_size_t),
        ("kv_bytes_stock", ctypes.c_size_t),
    ]


def declare(library: Any) -> None:
    """The types of pyfastv.h's functions, for ctypes."""
    pointer, int32, size = ctypes.c_void_p, ctypes.c_int32, ctypes.c_size_t
    library.pyfastv_parse.argtypes = [ctypes.c_char_p, int32, ctypes.POINTER(FastvParams)]
    library.pyfastv_attach.argtypes = [pointer, ctypes.POINTER(FastvParams)]
    library.pyfastv_fit_layers.argtypes = [pointer, ctypes.POINTER(FastvParams)]
    library.pyfastv_flush.argtypes = [pointer]
    library.pyfastv_begin_media.argtypes = [pointer, ctypes.c_int, ctypes.c_char_p, int32, int32]
    library.pyfastv_allow_position_gaps.argtypes = [pointer]
    library.pyfastv_allow_position_gaps.restype = None
    library.pyfastv_token_embedding.argtypes = [pointer, int32, ctypes.POINTER(ctypes.c_float)]
    library.pyfastv_token_embedding.restype = ctypes.c_bool
    library.pyfastv_reset_report.argtypes = [pointer]
    library.pyfastv_get_report.argtypes = [pointer, ctypes.POINTER(FastvReport)]
    library.pyfastv_get_kept.argtypes = [pointer, int32, int32, ctypes.POINTER(int32), size]
    library.pyfastv_get_scores.argtypes = [pointer, int32, int32, ctypes.POINTER(ctypes.c_float), size]
    library.pyfastv_get_kept.restype = library.pyfastv_get_scores.restype = size
    library.pyfastv_unsupported_reason.argtypes = [pointer]
    library.pyfastv_unsupported_layer.argtypes = [pointer, int32]
    library.pyfastv_default_params.argtypes = [ctypes.POINTER(FastvParams), size]
    for kind in ("score", "pick"):
        getattr(library, f"pyfastv_find_{kind}").argtypes = [ctypes.c_char_p]
        getattr(library, f"pyfastv_{kind}_name").argtypes = [int32]
    for function in (
        *("version", "score_name", "pick_name"),
        *("last_error", "unsupported_reason", "unsupported_layer"),
    ):
        getattr(library, f"pyfastv_{function}").restype = ctypes.c_char_p


def report_of(library: Any, context: Any) -> FastvReport:
    report = FastvReport()
    library.pyfastv_get_report(context, ctypes.byref(report))
    return report


def load_bindings(folder: Path, version: str | None = None) -> tuple[Any, Any]:
    """The modules llama_cpp.llama_cpp and llama_cpp.mtmd_cpp, bound to the libraries in ``folder``.

    Raises EngineError if one of the libraries is not there, or llama-cpp-python is not, or is not of ``version``: C
    structures differ from one to another.
    """
    suffix = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
    for name in ("llama", "mtmd"):
        if not (folder / f"lib{name}{suffix}").exists():
            raise EngineError(f"{folder}: no lib{name}{suffix}")
    os.environ["LLAMA_CPP_LIB_PATH"] = os.environ["MTMD_CPP_LIB"] = str(folder)
    wanted = f"llama-cpp-python{f'=={version}' if version else ''}"
    try:
        import llama_cpp as package
        from llama_cpp import llama_cpp, mtmd_cpp
    except ImportError as error:
        raise EngineError(
            f"stock libraries are called through the bindings of llama-cpp-python ({error}): "
            f"pip install {wanted}"
        ) from error
    if version is not None and package.__version__ != version:
        raise EngineError(
            f"llama-cpp-python is {package.__version__}, but the libraries are those of {version}: "
            f"pip install {wanted}"
        )

    return llama_cpp, mtmd_cpp


def foreign_libraries(folder: Path) -> list[str]:
    """Loaded llama.cpp libraries that are not from `folder`, as a wrong rpath brings them. Linux only."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    loaded = set(re.findall(r"(/\S*/lib(?:llama|mtmd|ggml)[\w.-]*)", maps))
    return sorted(path for path in loaded if Path(path).parent != folder)
