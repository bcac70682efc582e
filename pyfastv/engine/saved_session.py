"""A conversation in a file.

A line that says what it is; the version, and the length of what follows, as little-endian integers; JSON with the
messages, the options and the model; the pictures and the state of the context, one behind the other; a hash of all before
it. Nothing in it is run when it is read.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image

from .. import _native
from .._about import __version__
from ..errors import DataError, Error, OptionError, printable
from ..inputs.images import Frame, load_image
from ..output import Output
from ..settings.setting import SETTING_OPTIONS, Setting, SettingOptions
from .sampling import RequestOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .loaded import LoadedModel, PathLike

__all__ = ["SavedSession", "fingerprint"]

_MAGIC = b"pyfastv session\n"
_VERSION = 1
_HEAD = struct.Struct("<16sIQ")  # magic, version, bytes of the JSON
_DIGEST_BYTES = 32

_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16  # of a model's file


@dataclass
class SavedSession:
    """What is in the file."""

    messages: list[dict[str, Any]]
    """Pictures as RGB arrays or frames."""
    options: RequestOptions
    fastv: str
    """By which the visual tokens of the context were chosen, as the engine takes it."""
    state: NDArray[np.uint8] | None
    """Of the context, as the engine gives it; None: it was lost."""
    name: str = ""
    """Of the file, for messages."""

    def save(self, path: PathLike, model: LoadedModel) -> None:
        """Raises DataError: it cannot be written; OptionError: options that are no JSON."""
        output = Output(path)
        blobs: list[bytes | memoryview] = []
        messages = [_packed(message, blobs) for message in self.messages]
        if self.state is not None:
            blobs.append(self.state.data)
        values = {
            "pyfastv": __version__,
            "model": _identity(model),
            "messages": messages,
            "options": _plain(self.options),
            "fastv": self.fastv,
            "has_state": self.state is not None,
            "blobs": [len(blob) for blob in blobs],
        }
        try:
            header = json.dumps(values, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise OptionError(f"the options of this conversation cannot be saved: {error}") from None
        digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        with output.part() as part, part.open("wb") as file:
            for piece in (_HEAD.pack(_MAGIC, _VERSION, len(header)), header, *blobs):
                digest.update(piece)
                file.write(piece)
            file.write(digest.digest())

    @classmethod
    def load(cls, path: PathLike, model: LoadedModel, *, max_pixels: int) -> SavedSession:
        """Raises DataError: the file cannot be read, is damaged, or is of another model or version."""
        name = printable(os.fsdecode(path))
        data = _read(path, name)
        try:
            _, _, size = _HEAD.unpack_from(data)
            values = json.loads(bytes(data[_HEAD.size : _HEAD.size + size]))
            _check_model(name, values["model"], _identity(model))
            blobs = list(_blobs(data[_HEAD.size + size : -_DIGEST_BYTES], values["blobs"]))
            state = np.frombuffer(blobs[-1], np.uint8) if values["has_state"] else None
            messages = [_unpacked(message, blobs, max_pixels) for message in values["messages"]]
            options, fastv = values["options"], values["fastv"]
            if not isinstance(options, dict) or not isinstance(fastv, str):
                raise TypeError
        except DataError:
            raise
        except Error as error:  # a picture, for one larger than max_pixels
            raise DataError(f"{name}: {error}") from error
        except (struct.error, LookupError, TypeError, ValueError, RecursionError) as error:
            raise DataError(f"{name}: is damaged, though its hash is right: save it again") from error
        return cls(messages, cast(RequestOptions, options), fastv, state, name)


def fingerprint(path: Path) -> str:
    """Of a file: a hash of its length and of pieces all over it, since reading a model whole takes seconds. Another
    quantization or fine-tune has other numbers in all of its tensors. Raises OSError."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest.update(str(size).encode())
        for number in range(_SAMPLES):
            file.seek(max(0, size - _SAMPLE_BYTES) * number // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _identity(model: LoadedModel) -> dict[str, Any]:
    try:
        return {
            "description": _native.model_info(model.path)["description"],
            "file": fingerprint(model.path),
            "mmproj": None if model.mmproj is None else fingerprint(model.mmproj),
        }
    except OSError as error:
        raise DataError(f"{printable(str(error.filename))}: cannot be read: {error.strerror}") from None


def _check_model(name: str, saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    if saved["file"] != here["file"]:
        raise DataError(
            f"{name}: is a conversation with another model ({saved['description']}), and this one is "
            f"{here['description']}: load the file that it was saved with"
        )
    if saved["mmproj"] != here["mmproj"]:
        raise DataError(
            f"{name}: is a conversation with another vision encoder, or with none: load the model with the mmproj that "
            "it was saved with"
        )


def _read(path: PathLike, name: str) -> memoryview:
    """All of it; raises DataError unless it is whole, and of a version that is known."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD.size)
            if head[: len(_MAGIC)] != _MAGIC:
                raise DataError(f"{name}: is no saved conversation: Session.save() writes one")
            if len(head) == _HEAD.size and (version := _HEAD.unpack(head)[1]) != _VERSION:
                raise DataError(
                    f"{name}: is a saved conversation of version {version}, and {_VERSION} is known: read it with the "
                    "pyfastv that wrote it"
                )
            data = memoryview(head + file.read())
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # a null character in the path
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name!r}: cannot be read: {error}") from None
    content, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest() != digest:
        raise DataError(f"{name}: is damaged, or not all there ({len(data):,} bytes): copy or save it again")
    return data


def _blobs(data: memoryview, sizes: list[int]) -> Iterator[memoryview]:
    at = 0
    for size in sizes:
        if not isinstance(size, int) or not 0 <= size <= len(data) - at:
            raise ValueError
        yield data[at : at + size]
        at += size
    if at != len(data):
        raise ValueError


# messages: pictures are numbers of blobs


def _packed(message: Mapping[str, Any], blobs: list[bytes | memoryview]) -> dict[str, Any]:
    content = message["content"]
    if not isinstance(content, str):
        content = [_packed_part(part, blobs) for part in content]
    return {**message, "content": content}


def _packed_part(part: Mapping[str, Any], blobs: list[bytes | memoryview]) -> dict[str, Any]:
    if part["type"] != "image":
        return dict(part)
    picture = part["image"]
    told: dict[str, Any] = {"type": "image", "blob": len(blobs)}
    if isinstance(picture, Frame):
        told |= {"video": picture.video, "number": picture.number}
        picture = picture.pixels
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=1)
    blobs.append(file.getbuffer())
    return told


def _unpacked(message: Any, blobs: list[memoryview], max_pixels: int) -> dict[str, Any]:
    content = message["content"]
    if not isinstance(content, str):
        content = [_unpacked_part(part, blobs, max_pixels) for part in content]
    return {**message, "content": content}


def _unpacked_part(part: Any, blobs: list[memoryview], max_pixels: int) -> dict[str, Any]:
    if part["type"] != "image":
        return dict(part)
    pixels = load_image(blobs[part["blob"]], max_pixels=max_pixels)
    if "video" not in part:
        return {"type": "image", "image": pixels}
    return {"type": "image", "image": Frame(pixels, str(part["video"]), int(part["number"]))}


def _plain(options: RequestOptions) -> dict[str, Any]:
    """Settings as text, the rest as JSON has it."""
    given: dict[str, Any] = dict(options)
    named = {name: value for name, value in given.items() if name in SETTING_OPTIONS}
    specs = Setting().but(**cast(SettingOptions, named)).specs()
    return {**given, **{name: specs[name] for name in named}}
