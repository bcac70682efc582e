"""Quantized vision-language models on llama.cpp, with FastV: later layers see fewer visual tokens."""

from . import _checkout, examples  # noqa: F401 - _checkout finds the native module
from ._about import __version__, lib_path
from .engine.answer import Answer, Report
from .engine.pieces import TokenProb
from .engine.runner import Runner
from .engine.sampling import Sampling
from .engine.session import Session
from .engine.stream import Stream
from .errors import (
    AnswerError,
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
from .inputs.images import Frame, load_image
from .inputs.video import Video, load_frames
from .models import from_hub
from .settings.presets import VTW, FastV, Feather, PyramidDrop, Recommended, ZipVL
from .settings.profile import Profile, model_identity
from .settings.reduce import EVS, CDPruner, DivPrune, Merge, PLLaVA, Pool, Reducer, Stride, VidCom2
from .settings.schedule import Cut, Schedule
from .settings.skip import Skip
from .settings.turbo import Turbo

__all__ = [
    "EVS",
    "VTW",
    "Answer",
    "AnswerError",
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
    "Skip",
    "Stream",
    "Stride",
    "TokenProb",
    "Turbo",
    "UnsupportedModelError",
    "VidCom2",
    "Video",
    "ZipVL",
    "__version__",
    "examples",
    "from_hub",
    "lib_path",
    "load_frames",
    "load_image",
    "model_identity",
]
