"""Quantized vision-language models on llama.cpp, with FastV: later layers see fewer visual tokens."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import _native
from .engine.answer import Answer, Report
from .errors import ClosedError, ContextLengthError, DataError, DecodeError, Error, ImageError, ModelError, OptionError, OutOfMemoryError, UnsupportedModelError
from .inputs.images import Frame, load_image
from .models import from_hub
from .engine.sampling import Sampling
from .settings.presets import VTW, FastV, Feather, PyramidDrop, Recommended, ZipVL
from .settings.profile import Profile
from .settings.reduce import EVS, CDPruner, DivPrune, Merge, PLLaVA, Pool, Reducer, Stride, VidCom2
from .engine.runner import Runner
from .settings.schedule import Cut, Schedule
from .engine.session import Session
from .engine.stream import Stream
from .settings.turbo import Turbo
from .inputs.video import Video, load_frames

__all__ = [
    "EVS",
    "VTW",
    "Answer",
    "CDPruner",
    "ClosedError",
    "ContextLengthError",
    "Cut",
    "DataError",
    "DecodeError",
    "DivPrune",
    "Error",
    "FastV",
    "Feather",
    "Frame",
    "ImageError",
    "Merge",
    "ModelError",
    "OptionError",
    "OutOfMemoryError",
    "PLLaVA",
    "Pool",
    "Profile",
    "PyramidDrop",
    "Recommended",
    "Reducer",
    "Report",
    "Runner",
    "Sampling",
    "Schedule",
    "Session",
    "Stream",
    "Stride",
    "Turbo",
    "UnsupportedModelError",
    "VidCom2",
    "Video",
    "ZipVL",
    "__version__",
    "from_hub",
    "lib_path",
    "load_frames",
    "load_image",
]

try:
    __version__ = version("pyfastv")
except PackageNotFoundError:  # run from a source tree that was not installed
    __version__ = "0+source"


def lib_path() -> Path:
    """Folder of the patched libllama and libmtmd, for programs that load them in place of the stock ones."""
    return Path(str(_native.__file__)).parent / "lib"
