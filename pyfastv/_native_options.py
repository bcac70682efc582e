"""What :class:`pyfastv.Runner` and :class:`pyfastv.serve.pool.Pool` both hand to the native module."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ._checks import integer, utf8
from .encoder_type import Encoder, check_encoder_type, resolve
from .errors import ModelError, OptionError
from .images import Frame, Picture, load_image
from .models import bundled_mmproj, bundled_model
from .options import Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "MAX_N_CTX",
    "MAX_THREADS",
    "PathLike",
    "content_id",
    "engine_options",
    "model_files",
    "native_pictures",
    "sampling_options",
    "seed_of",
]

PathLike: TypeAlias = "str | os.PathLike[str]"

MAX_THREADS = 512  # ggml's GGML_MAX_N_THREADS
MAX_N_CTX = 2**31 - 256  # llama.cpp rounds a context up to 256 tokens, and counts them in an int32
_RANDOM_SEED = 2**32 - 1  # llama.cpp's LLAMA_DEFAULT_SEED
_FLASH_ATTENTION = {"auto": "auto", True: "on", False: "off", "on": "on", "off": "off"}


def model_files(model: PathLike | None, mmproj: PathLike | None) -> tuple[Path, Path | None]:
    """Of the language model and its vision encoder; no model is the bundled one. Raises ModelError: that is no path."""
    if model is None:
        model, mmproj = bundled_model(), mmproj or bundled_mmproj()
    for path in (model, mmproj):
        if path is not None and "\0" in os.fsdecode(path):
            raise ModelError(f"{os.fsdecode(path)!r}: a path has no null character")
    return Path(os.fsdecode(model)), None if mmproj is None else Path(os.fsdecode(mmproj))


def engine_options(
    model: Path,
    mmproj: Path | None,
    *,
    n_slots: int,
    n_ctx: int | None,
    n_batch: int,
    n_ubatch: int,
    n_threads: int | None,
    n_gpu_layers: int,
    flash_attn: bool | str,
    type_k: str,
    type_v: str,
    encoder_cache_mb: int,
    encoder_type: str,
    verbose: bool,
) -> tuple[dict[str, Any], Encoder | None]:
    """Keywords of the native engine, checked, and the encoder that they name. Raises OptionError, ModelError."""
    if flash_attn not in _FLASH_ATTENTION:
        raise OptionError(f"flash_attn must be 'auto', True or False; got {flash_attn!r}")
    options = {
        "model_path": str(model),
        "mmproj_path": None,
        "n_slots": n_slots,
        "n_ctx": 0 if n_ctx is None else integer("n_ctx", n_ctx, 0, MAX_N_CTX),
        "n_batch": integer("n_batch", n_batch, 1),
        "n_ubatch": integer("n_ubatch", n_ubatch, 1),
        "n_threads": 0 if n_threads is None else integer("n_threads", n_threads, 1, MAX_THREADS),
        "n_gpu_layers": integer("n_gpu_layers", n_gpu_layers, -1),
        "flash_attn": _FLASH_ATTENTION[flash_attn],
        "type_k": utf8("type_k", type_k),
        "type_v": utf8("type_v", type_v),
        "encoder_cache_bytes": integer("encoder_cache_mb", encoder_cache_mb, 0) * 2**20,
        "verbose": bool(verbose),
    }
    check_encoder_type(encoder_type)
    encoder = None if mmproj is None else Encoder(mmproj, None)
    if mmproj is not None and model.is_file():  # it may take a minute
        encoder = resolve(mmproj, encoder_type, n_gpu_layers=n_gpu_layers)
    if encoder is not None:
        options["mmproj_path"] = str(encoder.path)
    return options, encoder


def seed_of(seed: int | None) -> int | None:
    """The seed of requests that bring none, checked. Raises OptionError."""
    return None if seed is None else integer("seed", seed, 0, 2**32 - 1)


def sampling_options(sampling: Sampling, seed: int | None) -> dict[str, Any]:
    """Keywords of the native start() and prepare(). ``seed``: where the sampling has none; None: a random one."""
    values = {field.name: getattr(sampling, field.name) for field in fields(sampling) if field.name != "stop"}
    if values["max_tokens"] is None:
        values["max_tokens"] = -1
    if values["seed"] is None:
        values["seed"] = _RANDOM_SEED if seed is None else seed
    return values


def native_pictures(
    pictures: Sequence[Picture], max_pixels: int
) -> tuple[list[NDArray[np.uint8]], list[str], list[int]]:
    """Of a prompt: pixels, ids, and the numbers of those that are frames of a video, else 0. Raises ImageError."""
    images = [load_image(picture, max_pixels=max_pixels) for picture in pictures]
    ids, frames = [], []
    for picture, image in zip(pictures, images, strict=True):
        if isinstance(picture, Frame):
            ids.append(picture.video)
            frames.append(picture.number)
        else:
            ids.append(content_id(image))
            frames.append(0)
    return images, ids, frames


def content_id(image: NDArray[np.uint8]) -> str:
    """A hash of an image's pixels and size."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(image.data)
    return digest.hexdigest()
