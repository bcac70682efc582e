"""Quantized vision encoders, made once and kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .. import _native
from ..errors import DataError, Error
from .quantize import quantize_mmproj
from .user_cache import user_cache

__all__ = ["folder", "kept_encoder"]

_FORMAT = 1  # of what is written: another number makes every file anew
_SAMPLE, _SAMPLES = 1 << 16, 16
_HEADER = 1 << 20  # bytes that hold an mmproj's header, or most of it
_SPARE_BYTES = 1 << 29  # of the disk, for others
_ABANDONED = 24 * 3600  # seconds after which nobody writes to a part any more


def folder() -> Path:
    """Where they are kept."""
    return user_cache() / "encoders"


def kept_encoder(source: Path, type: str, progress: Callable[[float, float], object] | None = None) -> Path:
    """The mmproj ``source`` with its matrices as ``type``, made unless it is there; then older ones of that path go.

    Raises DataError (it cannot be kept), ModelError (``source`` is no float mmproj). Several processes may make the same
    at once.
    """
    place = _digest(os.path.realpath(os.fsencode(source)))
    # the name is for people: long or not UTF-8, it is cut or left out
    stem = source.stem[:60] if source.stem.isprintable() else "mmproj"
    try:
        content = _content(source)
        target = folder() / f"{stem}.{place}.{content}.{type}.gguf"
        if _is_whole(target):
            return target
        folder().mkdir(parents=True, exist_ok=True)
        _check_room(source)
    except OSError as error:
        raise DataError(f"{folder()}: cannot be written: {error.strerror or error}") from error
    quantize_mmproj(source, target, type, force=True, progress=progress)
    _remove_old(place, content)
    return target


def _content(source: Path) -> str:
    """Of the file's size, time, header, and samples of its weights: hashing gigabytes would take as long as writing."""
    found = source.stat()
    digest = hashlib.blake2b(repr((_FORMAT, found.st_size, found.st_mtime_ns)).encode(), digest_size=8)
    with source.open("rb") as file:
        digest.update(file.read(_HEADER))
        for i in range(1, _SAMPLES + 1):
            file.seek(max(0, found.st_size * i // _SAMPLES - _SAMPLE))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=6).hexdigest()


def _is_whole(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        _native.gguf_header(path)
    except Error:  # the machine stopped before the disk had it
        return False
    return True


def _check_room(source: Path) -> None:
    needed, free = source.stat().st_size, shutil.disk_usage(folder()).free
    if needed + _SPARE_BYTES > free:
        raise DataError(
            f"{folder()}: {free / 1e6:.0f} MB are free, and {(needed + _SPARE_BYTES) / 1e6:.0f} MB should be"
        )


def _remove_old(place: str, content: str) -> None:
    for path in folder().glob(f"*.{place}.*.gguf"):
        if f".{place}.{content}." not in path.name:
            with suppress(OSError):
                path.unlink()
    for path in folder().glob(".pyfastv-*.part"):
        with suppress(OSError):
            if path.stat().st_mtime < time.time() - _ABANDONED:
                path.unlink()
