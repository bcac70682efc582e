"""Pictures from wherever they come, as RGB arrays. Decoded by Pillow only."""

from __future__ import annotations

import base64
import binascii
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias, cast
from urllib.parse import unquote_to_bytes

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from .._checks import integer
from ..errors import ImageError

__all__ = ["MAX_PIXELS", "Frame", "Picture", "Pictures", "as_list", "load_image"]

Picture: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[np.generic] | Frame"
)
"""A path, a data URI, an encoded file's bytes, a Pillow image, an array (see :func:`load_image`), or a video's frame."""

Pictures: TypeAlias = "Picture | Sequence[Picture] | None"
"""One, several (a list or a tuple), or none."""

MAX_PIXELS = 64_000_000
"""Default limit of a picture's width times height: a 64-megapixel photo is 192 MB as RGB."""

# Raster formats that Pillow recognises by their first bytes. Not here: formats that start a program (EPS runs
# Ghostscript), vector formats, and formats without a signature, which claim arbitrary bytes as a picture.
# AVIF and HEIF are read where this Pillow can (HEIF: through pillow-heif's opener).
FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG"),
    *("JPEG2000", "MPO", "PNG", "PPM", "QOI", "TIFF", "WEBP"),
)

# What else people hand over by mistake: first bytes, and what to say.
_NOT_PICTURES = (
    (b"%PDF", "a PDF document: render a page to PNG first"),
    (b"%!PS", "PostScript: render it to PNG first"),
    (b"GGUF", "a GGUF model file"),
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself first"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1aE\xdf\xa3", "a video: pass it as video="),
)
_HEIF_BRANDS = (b"heic", b"heix", b"heif", b"mif1", b"avif")


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a video, in a prompt: a slice of one picture."""

    pixels: NDArray[np.uint8]
    """RGB [height, width, 3]."""
    video: str
    """The same for all frames of a video, and for the same frames."""
    number: int
    """Among those sampled, from 0."""


def as_list(pictures: Pictures) -> list[Picture]:
    """The pictures, however many they are."""
    if pictures is None:
        return []
    return list(pictures) if isinstance(pictures, (list, tuple)) else [cast(Picture, pictures)]


def load_image(source: Picture, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read a picture as RGB, uint8 [height, width, 3], C-contiguous, in memory of its own.

    ``source``: a path; the bytes of a file; a data URI; a Pillow image; or an array [h, w], [h, w, 1],
    [h, w, 3] or [h, w, 4] of uint8, uint16, or floats in [0, 1]; or a frame, as it is. EXIF orientation is applied,
    transparency is laid on white, 16-bit and float values are scaled to 8 bits, an animation gives its first frame.

    ``max_pixels`` limits width times height; it is compared with the file's header, before decoding.

    Raises ImageError for whatever is not a picture, is damaged or too large. Safe to call from any thread.
    """
    max_pixels = integer("max_pixels", max_pixels, 1, 2**62)
    if isinstance(source, Frame):
        return source.pixels
    if isinstance(source, np.ndarray):
        return _flatten(_from_array(source, max_pixels))
    if isinstance(source, Image.Image):
        return _decode(source, f"the Pillow image ({source.mode})", max_pixels)
    if isinstance(source, str) and source[:5].lower() == "data:":
        return _open(io.BytesIO(data_uri_bytes(source)), _uri_name(source), max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        file = io.BytesIO(source)
        return _open(file, f"the picture of {file.getbuffer().nbytes} bytes", max_pixels)
    if isinstance(source, (str, os.PathLike)):
        return _open_path(os.fsdecode(source), max_pixels)
    raise ImageError(
        f"cannot read a picture from {type(source).__name__}: "
        "pass a path, bytes, a data URI, a Pillow image or a numpy array"
    )


def _open_path(path: str, max_pixels: int) -> NDArray[np.uint8]:
    name = path if len(path) <= 200 else f"{path[:200]}..."
    if path.lower().startswith(("http://", "https://")):
        raise ImageError(f"{name}: pictures are not fetched from the web: download it and pass its path")
    try:
        with open(path, "rb") as file:
            # a pipe is read to its end first: decoders seek
            return _open(file if file.seekable() else io.BytesIO(file.read()), name, max_pixels)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ImageError(f"{name!r}: cannot be read: {getattr(error, 'strerror', error)}") from error


def _uri_name(uri: str) -> str:
    kind = uri[5:60].partition(",")[0].encode("ascii", "backslashreplace").decode()
    return f"data URI ({kind or 'text/plain'})"


def data_uri_bytes(uri: str) -> bytes:
    """RFC 2397: ``data:[<media type>][;base64],<data>``."""
    header, comma, payload = uri.partition(",")
    if not comma:
        raise ImageError(f"{_uri_name(uri)}: has no data; the form is data:image/png;base64,<data>")
    try:
        data = unquote_to_bytes(payload)
    except UnicodeEncodeError as error:
        raise ImageError(f"{_uri_name(uri)}: {payload[error.start]!r} is not a character") from None
    if not header.lower().endswith(";base64"):
        return data
    data = b"".join(data.split())
    try:
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except binascii.Error as error:
        raise ImageError(f"{_uri_name(uri)}: not valid base64: {error}") from error


def _open(file: BinaryIO, name: str, max_pixels: int) -> NDArray[np.uint8]:
    head = file.read(1024)
    if not head:
        raise ImageError(f"{name}: is empty (0 bytes)")
    file.seek(0)
    Image.init()
    try:
        image = Image.open(file, formats=[known for known in FORMATS if known in Image.OPEN])
    except UnidentifiedImageError:
        raise ImageError(f"{name}: {_describe(head)}") from None
    # the warning is an exception where the caller has made it one
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name}: too many pixels: {error}; make the picture smaller") from error
    except MemoryError:
        raise
    except Exception as error:  # plugins raise anything on damaged headers
        raise ImageError(f"{name}: damaged picture: {error}") from error
    with image:
        return _decode(image, f"{name} ({image.format})", max_pixels)


def _describe(head: bytes) -> str:
    for start, what in _NOT_PICTURES:
        if head.startswith(start):
            return f"is not a picture but {what}"
    if head[4:8] == b"ftyp":
        if head[8:12] in _HEIF_BRANDS:
            return "is a HEIF or AVIF picture, which this Pillow cannot read: convert it to JPEG or PNG"
        return "is not a picture but a video: pass it as video="
    head = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in head:
        return "is not a raster picture but an SVG drawing: render it to PNG first"
    if head.startswith((b"<!doctype html", b"<html")):
        return "is not a picture but a web page"
    return "is not a picture in a format that can be read (PNG, JPEG, WebP, GIF, TIFF, BMP, ...)"


def _decode(image: Image.Image, name: str, max_pixels: int) -> NDArray[np.uint8]:
    _check_size(name, image.width, image.height, max_pixels)
    try:
        image.load()
        return _flatten(_upright(image))
    except (MemoryError, ImageError):
        raise
    except Exception as error:  # decoders raise anything on damaged data
        raise ImageError(f"{name}: damaged or truncated picture: {error}") from error


def _check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{name}: has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width} x {height} is {width * height:,} pixels, the limit is {max_pixels:,}: "
            "make the picture smaller, or raise max_pixels"
        )


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF data does not make the pixels unreadable
        return image


def _flatten(image: Image.Image) -> NDArray[np.uint8]:
    """RGB array of a decoded image of any mode."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"), dtype=np.uint8, order="C")


def _to_8_bits(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """One channel of integers (0..65535, as Pillow scales them) or floats (0..1, else 0..255) to 0..255.

    Values outside of these ranges widen the range: scaled, not clipped."""
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all():
        raise ImageError("the picture has values that are not finite (NaN or infinite)")
    low, high = min(float(wide.min()), 0.0), float(wide.max())
    if values.dtype.kind in "iu":
        top = max(high, 65535.0)
    else:
        top = 1.0 if high <= 1.0 and low >= 0.0 else max(high, 255.0)
    return np.rint((wide - low) * (255.0 / (top - low))).astype(np.uint8)


def _from_array(array: NDArray[np.generic], max_pixels: int) -> Image.Image:
    name = f"the array of shape {array.shape} and type {array.dtype}"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(f"{name}: a picture is [h, w], [h, w, 1], [h, w, 3] or [h, w, 4], channels last")
    _check_size(name, array.shape[1], array.shape[0], max_pixels)
    if array.dtype == np.uint8:
        values = cast("NDArray[np.uint8]", array)
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:
        values = _to_8_bits(array)
    elif array.dtype.kind == "f":
        # written so that NaN fails it
        if not (array.min() >= 0 and array.max() <= 1):
            raise ImageError(
                f"{name}: floats must lie in [0, 1]; these are from {array.min()} to {array.max()}"
            )
        values = _to_8_bits(array)
    else:
        raise ImageError(f"{name}: values must be uint8, uint16, or floats in [0, 1]")
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(values))
