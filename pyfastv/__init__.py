"""Quantized vision-language models on llama.cpp, with FastV: later layers see fewer visual tokens."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import _native
from .answer import Answer, Report
from .errors import (
    ClosedError,
    ContextLengthError,
    DataError,
    DecodeError,
    Error,
    ImageError,
    ModelError,
    OptionError,
    OutOfMemoryError,
    UnsupportedModelError,
)
from .images import load_image
from .models import from_hub
from .options import Sampling
from .presets import VTW, FastV, Feather, PyramidDrop, Recommended, ZipVL
from .profile import Profile
from .runner import Runner
from .schedule import Cut, Schedule
from .session import Session
from .stream import Stream
from .turbo import Turbo

__all__ = [
    "VTW",
    "Answer",
    "ClosedError",
    "ContextLengthError",
    "Cut",
    "DataError",
    "DecodeError",
    "Error",
    "FastV",
    "Feather",
    "ImageError",
    "ModelError",
    "OptionError",
    "OutOfMemoryError",
    "Profile",
    "PyramidDrop",
    "Recommended",
    "Report",
    "Runner",
    "Sampling",
    "Schedule",
    "Session",
    "Stream",
    "Turbo",
    "UnsupportedModelError",
    "ZipVL",
    "__version__",
    "from_hub",
    "lib_path",
    "load_image",
]

try:
    __version__ = version("pyfastv")
except PackageNotFoundError:  # run from a source tree that was not installed
    __version__ = "0+source"


def lib_path() -> Path:
    """Folder of the patched libllama and libmtmd, for programs that load them in place of the stock ones."""
    return Path(str(_native.__file__)).parent / "lib"
