"""In which type the matrices of the vision encoder are loaded."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _native
from ..errors import DataError, Error, ModelError, OptionError
from .encoder_gain import gain_of_q8_0
from .kept_encoders import folder, kept_encoder
from .quantize_plan import FLOATS, matrices

__all__ = ["ENCODER_TYPES", "Encoder", "check_encoder_type", "choose", "resolve"]

ENCODER_TYPES = ("auto", "stock", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""What ``encoder_type`` takes: "auto" is q8_0 where that is faster, "stock" the file as it is whatever it has, "f16" the
file as it is where it has floats."""

_LEAST_GAIN = 1.2  # below it the time for writing does not come back
_LEAST_WEIGHTS = 8_000_000  # smaller encoders take milliseconds anyway

_logger = logging.getLogger("pyfastv")
_told: set[str] = set()


@dataclass(frozen=True)
class Encoder:
    """The file of the vision encoder that is loaded."""

    path: Path
    type: str | None
    """Of its matrices; None: the file could not be read, or has none that are known."""
    source_type: str | None = None
    """Of the given file, where this one was made of it."""

    def __str__(self) -> str:
        if self.source_type is not None:
            return f"{self.type} (quantized from {self.source_type}, kept in {self.path.parent})"
        return f"{self.type or 'unknown'} (the file as it is)"


def check_encoder_type(value: object) -> str:
    """Raises OptionError."""
    if not isinstance(value, str) or value not in ENCODER_TYPES:
        raise OptionError(f"encoder_type must be one of {', '.join(ENCODER_TYPES)}; got {value!r}")
    return value


def resolve(
    mmproj: Path,
    encoder_type: str = "auto",
    *,
    n_gpu_layers: int = -1,
    progress: Callable[[float, float], object] | None = None,
) -> Encoder:
    """The file to load in place of ``mmproj``, made if it is not there yet, in seconds to a minute.

    ``progress``: called with (bytes done, bytes) while it is made; an exception in it ends that. Where nothing can be
    kept, the given file is taken, and a warning logged once. Raises OptionError (the file's matrices are quantized, and
    ``encoder_type`` names another type), ModelError. What cannot be read is left to those who load it.
    """
    found, wanted = choose(mmproj, encoder_type, n_gpu_layers)
    if wanted is None:
        return Encoder(mmproj, found)
    try:
        return Encoder(kept_encoder(mmproj, wanted, progress), wanted, found)
    except DataError as error:
        _tell(f"the vision encoder stays {found}, since as {wanted} it cannot be kept: {error}")
    except ModelError:
        if encoder_type != "auto":
            raise
    return Encoder(mmproj, found)


def choose(mmproj: Path, encoder_type: str, n_gpu_layers: int = -1) -> tuple[str | None, str | None]:
    """(The type of the file's matrices, the one to write them in; None: the file is taken). Writes nothing.

    Raises OptionError."""
    wanted = check_encoder_type(encoder_type)
    try:
        header = _native.gguf_header(mmproj)
    except Error:
        return None, None
    found = _type_of(header)
    if wanted == "stock" or found is None:
        return found, None
    if found not in FLOATS:
        if wanted not in ("auto", found):
            raise OptionError(
                f"encoder_type is {wanted!r}, but the matrices of {mmproj} are {found} already: "
                "take an f16 or f32 file, or encoder_type='stock'"
            )
        return found, None
    if wanted == "auto":
        wanted = "q8_0" if _gains(header, n_gpu_layers) else "f16"
    return found, None if wanted == "f16" else wanted


def _type_of(header: Mapping[str, Any]) -> str | None:
    """Of most weights in matrices; quantized files have some in f16, whose rows are no whole number of blocks."""
    weights: dict[str, int] = {}
    for kind, columns, rows in matrices(header).values():
        weights[kind] = weights.get(kind, 0) + columns * rows
    quantized = {kind: n for kind, n in weights.items() if kind not in FLOATS}
    candidates = quantized or weights
    return max(candidates, key=lambda kind: candidates[kind]) if candidates else None


def _gains(header: Mapping[str, Any], n_gpu_layers: int) -> bool:
    n_weights = sum(columns * rows for _, columns, rows in matrices(header).values())
    on_gpu = n_gpu_layers != 0 and any(device["type"] in ("gpu", "igpu") for device in _native.backends())
    # those who ask for llama.cpp's own products want what it does
    stock = os.environ.get("PYFASTV_KERNELS") == "stock"
    return not (n_weights < _LEAST_WEIGHTS or on_gpu or stock) and gain_of_q8_0() >= _LEAST_GAIN


def _tell(text: str) -> None:
    if text not in _told:
        _told.add(text)
        _logger.warning("pyfastv: %s", text)


def describe(found: str | None, wanted: str | None) -> str:
    """For ``pyfastv info``: what :func:`choose` says."""
    if wanted is not None:
        return f"{wanted} (quantized from {found} when it is loaded first, kept in {folder()})"
    return f"{found or 'unknown'} (the file as it is)"
