"""pyfastv.h and pyfastv_turbo.h for ctypes: the structures, and the functions' types."""

from __future__ import annotations

import ctypes
from typing import Any, NoReturn

from .errors import DecodeError, Error, OptionError, OutOfMemoryError, UnsupportedModelError

__all__ = ["FastvParams", "FastvReport", "TurboParams", "declare", "declare_turbo", "raise_error"]

MAX_CUTS = 8
MAX_STAGES = MAX_CUTS + 1

_ERRORS: dict[int, type[Error]] = {
    -1: OptionError,
    -2: UnsupportedModelError,
    -3: OutOfMemoryError,
    -4: DecodeError,
    -5: DecodeError,
}


class FastvCut(ctypes.Structure):
    """struct pyfastv_cut."""

    _fields_ = [
        ("layer", ctypes.c_int32),
        ("drop", ctypes.c_float),
        ("score", ctypes.c_int),
        ("pick", ctypes.c_int),
        ("window", ctypes.c_int32),
        ("stride", ctypes.c_int32),
        ("mass", ctypes.c_float),
        ("seed", ctypes.c_uint32),
        ("weigh", ctypes.c_bool),
        ("merge", ctypes.c_bool),
    ]


class FastvParams(ctypes.Structure):
    """struct pyfastv_params."""

    _fields_ = [
        ("n_cuts", ctypes.c_int32),
        ("cuts", FastvCut * MAX_CUTS),
        ("recall", ctypes.c_float),
        ("n_cells", ctypes.c_int32),
    ]


class FastvReport(ctypes.Structure):
    """struct pyfastv_report."""

    _fields_ = [
        ("n_visual", ctypes.c_int32),
        ("n_recalled", ctypes.c_int32),
        ("n_pending", ctypes.c_int32),
        ("t_stage0_ms", ctypes.c_double),
        ("t_choose_ms", ctypes.c_double),
        ("t_later_ms", ctypes.c_double),
        ("archive_bytes", ctypes.c_size_t),
        ("n_stages", ctypes.c_int32),
        ("first_layer", ctypes.c_int32 * MAX_STAGES),
        ("n_visual_entered", ctypes.c_int32 * MAX_STAGES),
        ("kv_bytes_used", ctypes.c_size_t * MAX_STAGES),
        ("kv_bytes", ctypes.c_size_t * MAX_STAGES),
        ("kv_bytes_used_stock", ctypes.c_size_t),
        ("kv_bytes_stock", ctypes.c_size_t),
    ]


class TurboParams(ctypes.Structure):
    """struct pyfastv_turbo_params."""

    _fields_ = [
        ("r", ctypes.c_int32),
        ("share", ctypes.c_float),
        ("alpha", ctypes.c_float),
        ("first_layer", ctypes.c_int32),
        ("last_layer", ctypes.c_int32),
        ("once", ctypes.c_bool),
        ("renumber", ctypes.c_bool),
    ]


def declare(libllama: Any) -> Any:
    """libllama with the types of pyfastv.h's functions. Raises AttributeError if it is not ours."""
    pointer, int32, size = ctypes.c_void_p, ctypes.c_int32, ctypes.c_size_t
    libllama.pyfastv_parse.argtypes = [ctypes.c_char_p, int32, ctypes.POINTER(FastvParams)]
    libllama.pyfastv_attach.argtypes = [pointer, ctypes.POINTER(FastvParams)]
    libllama.pyfastv_reset_report.argtypes = [pointer]
    libllama.pyfastv_reset_report.restype = None
    libllama.pyfastv_get_report.argtypes = [pointer]
    libllama.pyfastv_get_report.restype = FastvReport
    libllama.pyfastv_get_kept.argtypes = [pointer, int32, int32, ctypes.POINTER(int32), size]
    libllama.pyfastv_get_kept.restype = size
    libllama.pyfastv_last_error.argtypes = []
    libllama.pyfastv_last_error.restype = ctypes.c_char_p
    return libllama


def declare_turbo(libmtmd: Any) -> Any:
    """libmtmd with the types of pyfastv_turbo.h's functions; None if it has none."""
    if not hasattr(libmtmd, "pyfastv_turbo_attach"):
        return None
    libmtmd.pyfastv_turbo_parse.argtypes = [ctypes.c_char_p, ctypes.POINTER(TurboParams)]
    libmtmd.pyfastv_turbo_attach.argtypes = [ctypes.c_void_p, ctypes.POINTER(TurboParams)]
    libmtmd.pyfastv_turbo_last_error.argtypes = []
    libmtmd.pyfastv_turbo_last_error.restype = ctypes.c_char_p
    return libmtmd


def raise_error(status: int, message: bytes) -> NoReturn:
    """The exception of a status that is not PYFASTV_OK."""
    raise _ERRORS.get(status, Error)(message.decode(errors="replace"))
