"""pyfastv.h, pyfastv_turbo.h and pyfastv_skip.h for ctypes: the structures, and the functions' types.

Those of pyfastv.h are the bench's, whose processes on stock libraries cannot import this package."""

from __future__ import annotations

import ctypes
from typing import Any, ClassVar, NoReturn

from ..bench.lowlevel.bindings import FastvParams, FastvReport, Sized, declare, report_of
from ..errors import DecodeError, Error, OptionError, OutOfMemoryError, UnsupportedModelError

__all__ = [
    "FastvParams",
    "FastvReport",
    "PictureShape",
    "SkipParams",
    "TurboParams",
    "declare",
    "declare_shapes",
    "declare_skip",
    "declare_turbo",
    "raise_error",
    "report_of",
]

_ERRORS: dict[int, type[Error]] = {
    -1: OptionError,
    -2: UnsupportedModelError,
    -3: OutOfMemoryError,
    -4: DecodeError,
    -5: DecodeError,
}


class TurboParams(Sized):
    """struct pyfastv_turbo_params."""

    _fields_: ClassVar[Any] = [
        ("size", ctypes.c_size_t),
        ("r", ctypes.c_int32),
        ("share", ctypes.c_float),
        ("alpha", ctypes.c_float),
        ("first_layer", ctypes.c_int32),
        ("last_layer", ctypes.c_int32),
        ("once", ctypes.c_bool),
        ("renumber", ctypes.c_bool),
        ("restore", ctypes.c_int32),
    ]


class PictureShape(ctypes.Structure):
    """struct pyfastv_picture_shape (native/vision/picture_shape.h)."""

    _fields_: ClassVar[Any] = [
        ("n_tokens", ctypes.c_int32),
        ("n_slices", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("height", ctypes.c_int32),
    ]


def declare_shapes(libmtmd: Any) -> Any:
    """libmtmd with the types of picture_shape.h's functions."""
    libmtmd.pyfastv_shape_of.argtypes = [
        *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_bool),
        ctypes.POINTER(PictureShape),
    ]
    libmtmd.pyfastv_shape_of.restype = ctypes.c_bool
    libmtmd.pyfastv_set_enlarge.argtypes = [ctypes.c_void_p, ctypes.c_bool]
    libmtmd.pyfastv_set_enlarge.restype = None
    return libmtmd


class SkipParams(Sized):
    """struct pyfastv_skip_params."""

    _fields_: ClassVar[Any] = [("size", ctypes.c_size_t), ("tau", ctypes.c_float)]


def declare_turbo(libmtmd: Any) -> Any:
    """libmtmd with the types of pyfastv_turbo.h's functions; None if it has none."""
    if not hasattr(libmtmd, "pyfastv_turbo_attach"):
        return None
    libmtmd.pyfastv_turbo_parse.argtypes = [ctypes.c_char_p, ctypes.POINTER(TurboParams)]
    libmtmd.pyfastv_turbo_attach.argtypes = [ctypes.c_void_p, ctypes.POINTER(TurboParams)]
    libmtmd.pyfastv_turbo_places.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_int32), ctypes.c_size_t]
    libmtmd.pyfastv_turbo_places.restype = ctypes.c_size_t
    libmtmd.pyfastv_turbo_patches.argtypes = [ctypes.c_void_p]
    libmtmd.pyfastv_turbo_patches.restype = ctypes.c_int32
    libmtmd.pyfastv_turbo_last_error.argtypes = []
    libmtmd.pyfastv_turbo_last_error.restype = ctypes.c_char_p
    return libmtmd


def declare_skip(libmtmd: Any) -> Any:
    """libmtmd with the types of pyfastv_skip.h's functions; None if it has none."""
    if not hasattr(libmtmd, "pyfastv_skip_attach"):
        return None
    libmtmd.pyfastv_skip_parse.argtypes = [ctypes.c_char_p, ctypes.POINTER(SkipParams)]
    libmtmd.pyfastv_skip_attach.argtypes = [ctypes.c_void_p, ctypes.POINTER(SkipParams)]
    libmtmd.pyfastv_skip_places.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_int32), ctypes.c_size_t]
    libmtmd.pyfastv_skip_places.restype = ctypes.c_size_t
    libmtmd.pyfastv_skip_last_error.argtypes = []
    libmtmd.pyfastv_skip_last_error.restype = ctypes.c_char_p
    return libmtmd


def raise_error(status: int, message: bytes) -> NoReturn:
    """The exception of a status that is not PYFASTV_OK."""
    raise _ERRORS.get(status, Error)(message.decode(errors="replace"))
