"""Pictures from wherever they come, as RGB arrays. Decoded by Pillow only."""

from __future__ import annotations

import errno
import io
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from .._checks import integer
from ..errors import ImageError
from .deep import has_low_bytes, take_low_bytes
from .mending import MENDABLE, mended
from .signatures import HEAD, TAIL, describe, is_heif
from .uris import data_uri_bytes, is_data_uri, local_path, uri_name

__all__ = [
    "MAX_PIXELS",
    "Frame",
    "Limits",
    "Picture",
    "Pictures",
    "Placed",
    "as_list",
    "load_image",
    "load_within",
    "named",
    "named_by_place",
    "picture_size",
]

Picture: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[np.generic] | Frame "
    "| Placed"
)
"""A path, a data: or file: URI, an encoded file's bytes, a Pillow image, an array (see :func:`load_image`), a video's
frame, or one of these with its place in a request."""

Pictures: TypeAlias = "Picture | Sequence[Picture] | None"
"""One, several (a list or a tuple), or none."""

MAX_PIXELS = 64_000_000
"""Default limit of a picture's width times height: a 64-megapixel photo is 192 MB as RGB."""

# Raster formats that Pillow recognises by their first bytes. Not here: formats that start a program (EPS runs
# Ghostscript), vector formats, and formats without a signature, which claim arbitrary bytes as a picture.
# AVIF and HEIF are read where this Pillow can (HEIF: through pillow-heif's opener, the extra "heif").
FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG"),
    *("JPEG2000", "MPO", "PNG", "PPM", "QOI", "TIFF", "WEBP"),
)

_SCALED = ("L", "LA", "RGB", "RGBA", "CMYK", "YCbCr")  # modes that Pillow resamples as they are

_DEPTHS = (8, 10, 12, 14, 16)  # bits that integers of pictures have
_HIGH_BYTE_OF_14_BITS = 64  # is less


class _Damaged(Exception):
    """The decoder cannot read the picture."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a video, in a prompt: a slice of one picture."""

    pixels: NDArray[np.uint8]
    """RGB [height, width, 3]."""
    video: str
    """The same for all frames of a video, and for the same frames."""
    number: int
    """Among those sampled, from 0."""


@dataclass(frozen=True, eq=False)
class Placed:
    """A picture that what is wrong with it names by its place, not by its number among those of a prompt."""

    picture: bytes
    """Of a file."""
    place: str
    """In the request, such as ``messages.0.content.1``."""


def as_list(pictures: Pictures) -> list[Picture]:
    """The pictures, however many they are."""
    if pictures is None:
        return []
    return list(pictures) if isinstance(pictures, (list, tuple)) else [cast(Picture, pictures)]


@contextmanager
def named(place: str) -> Iterator[None]:
    """What is raised meanwhile about a picture says which one it is; empty: there is no other."""
    try:
        yield
    except ImageError as error:
        if not place:
            raise
        raise ImageError(f"{place}: {error}", place) from error


def named_by_place(number: int, of: int) -> AbstractContextManager[None]:
    """:func:`named`, of one of several pictures."""
    return named("" if of == 1 else f"picture {number} of {of}")


def load_image(source: Picture, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read a picture as RGB, uint8 [height, width, 3], C-contiguous, in memory of its own.

    ``source``: a path; the bytes of a file; a data: or file: URI; a Pillow image; or an array [h, w], [h, w, 1],
    [h, w, 3] or [h, w, 4] of uint8, uint16, or floats in [0, 1]; or a frame, as it is. EXIF orientation is applied,
    transparency is laid on white, an animation gives its first frame. Floats are scaled to 8 bits, and integers of more
    than 8 bits by the smallest of 8, 10, 12, 14 and 16 bits that holds the picture's highest value.

    ``max_pixels`` limits width times height; it is compared with the file's header, before decoding.

    Raises ImageError for whatever is not a picture, is damaged or too large. Safe to call from any thread.
    """
    return load_within(source, Limits(max_pixels))


@dataclass
class Limits:
    """Of pictures that are read."""

    max_pixels: int
    """Width times height of the largest that is taken."""
    shrink_above: int | None = None
    """One with more is scaled down to so many; None: none is."""
    size: tuple[int, int] = (0, 0)
    """Width and height of the last one, before that."""

    def __post_init__(self) -> None:
        self.max_pixels = integer("max_pixels", self.max_pixels, 1, 2**62)


def load_within(source: Picture, limits: Limits) -> NDArray[np.uint8]:
    """:func:`load_image`, which tells ``limits`` the size."""
    if isinstance(source, Frame):
        limits.size = source.pixels.shape[1], source.pixels.shape[0]
        return source.pixels
    if isinstance(source, Placed):
        with named(source.place):
            return load_within(source.picture, limits)
    if isinstance(source, np.ndarray):
        return _flatten(_shrunk(_from_array(source, limits), limits))
    if isinstance(source, Image.Image):
        return _from_pillow(source, limits)
    if isinstance(source, str) and is_data_uri(source):
        return _open(io.BytesIO(data_uri_bytes(source)), uri_name(source), limits)
    if isinstance(source, (bytes, bytearray, memoryview)):
        file = io.BytesIO(source)
        return _open(file, f"the picture of {file.getbuffer().nbytes} bytes", limits)
    if isinstance(source, str):
        return _open_path(local_path(source), limits)
    if isinstance(source, os.PathLike):
        return _open_path(os.fsdecode(source), limits)
    raise ImageError(
        f"cannot read a picture from {type(source).__name__}: "
        "pass a path, bytes, a data URI, a Pillow image or a numpy array"
    )


def picture_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of an encoded picture by its header, before orientation is applied; None: decoding tells what is
    wrong with it."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR":  # what stands behind may not be read
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    try:
        with _opened(io.BytesIO(data), data[:HEAD]) as image:
            return image.size
    except Exception:  # plugins raise anything on damaged headers
        return None


def _open_path(path: str, limits: Limits) -> NDArray[np.uint8]:
    name = path if len(path) <= 200 else f"{path[:200]}..."
    if path.lower().startswith(("http://", "https://")):
        raise ImageError(f"{name}: pictures are not fetched from the web: download it and pass its path")
    try:
        with open(path, "rb") as file:
            # a pipe is read to its end first: decoders seek
            return _open(file if file.seekable() else io.BytesIO(file.read()), name, limits)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if getattr(error, "errno", None) == errno.ENAMETOOLONG:
            raise ImageError(
                f"{path[:60]!r}...: is too long for a path: pass base64 as a data URI, data:image/png;base64,<data>"
            ) from None
        raise ImageError(f"{name!r}: cannot be read: {getattr(error, 'strerror', error)}") from error


def _open(file: BinaryIO, name: str, limits: Limits) -> NDArray[np.uint8]:
    head = file.read(HEAD)
    if not head:
        raise ImageError(f"{name}: is empty (0 bytes)")
    try:
        return _read(file, head, name, limits)
    except _Damaged as error:
        whole = None
        if head.startswith(MENDABLE):
            file.seek(0)
            whole = mended(file.read())
        if whole is not None:
            with suppress(_Damaged):
                return _read(io.BytesIO(whole), head, name, limits)
        raise ImageError(str(error)) from error.__cause__


def _read(file: BinaryIO, head: bytes, name: str, limits: Limits) -> NDArray[np.uint8]:
    try:
        image = _opened(file, head)
    except UnidentifiedImageError:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        what = describe(head, file.read(), name, "HEIF" in Image.OPEN)
        raise _Damaged(f"{name}: {what}") from None
    # the warning is an exception where the caller has made it one
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name}: too many pixels: {error}; make the picture smaller") from error
    except MemoryError:
        raise
    except Exception as error:  # plugins raise anything on damaged headers
        raise _Damaged(f"{name}: damaged picture: {error}; copy, download or save it again") from error
    name = f"{name} ({image.format})"
    with image:
        if not has_low_bytes(image):
            return _decode(image, name, limits)
        whole = Limits(limits.max_pixels)  # halves of a number are not scaled
        pixels = _decode(image, name, whole)
    if pixels.max() < _HIGH_BYTE_OF_14_BITS:
        with _opened(file, head) as image:
            take_low_bytes(image)
            low = _decode(image, name, whole)
        pixels = _to_8_bits(pixels.astype(np.uint16) * 256 + low)
    limits.size = whole.size
    return pixels if _within(limits) is None else _flatten(_shrunk(Image.fromarray(pixels), limits))


def _opened(file: BinaryIO, head: bytes) -> ImageFile.ImageFile:
    """Not decoded yet. Raises whatever Pillow does."""
    file.seek(0)
    Image.init()
    if "HEIF" not in Image.OPEN and is_heif(head):
        with suppress(ImportError):
            _register_heif()
    return Image.open(file, formats=[known for known in FORMATS if known in Image.OPEN])


def _register_heif() -> None:
    import pillow_heif

    cast(Any, pillow_heif).register_heif_opener()


def _from_pillow(image: Image.Image, limits: Limits) -> NDArray[np.uint8]:
    name = f"the Pillow image ({image.mode})"
    try:
        return _decode(image, name, limits)
    except _Damaged as error:
        unread = getattr(image, "tile", None) and getattr(image, "fp", None) is None
        if unread or "closed" in str(error.__cause__):
            raise ImageError(
                f"{name}: was closed before its pixels were read: use it inside of its `with`, or call load() there"
            ) from None
        raise ImageError(str(error)) from error.__cause__


def _decode(image: Image.Image, name: str, limits: Limits) -> NDArray[np.uint8]:
    _check_size(name, image.width, image.height, limits)
    try:
        if (size := _within(limits)) is not None:
            image.draft(None, size)  # JPEG's decoder can halve
        image.load()
        upright = _upright(image)
        if upright.size != image.size:
            limits.size = limits.size[::-1]
        return _flatten(_shrunk(upright, limits))
    except (MemoryError, ImageError):
        raise
    except Exception as error:  # decoders raise anything on damaged data
        reason = str(error) or type(error).__name__
        raise _Damaged(
            f"{name}: damaged or truncated picture: {reason}; copy, download or save it again"
        ) from error


def _check_size(name: str, width: int, height: int, limits: Limits) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{name}: has no pixels ({width} x {height})")
    if width * height > limits.max_pixels:
        raise ImageError(
            f"{name}: {width} x {height} is {width * height:,} pixels, the limit is {limits.max_pixels:,}: "
            "make the picture smaller, or raise max_pixels"
        )
    limits.size = width, height


def _within(limits: Limits) -> tuple[int, int] | None:
    """The size that the picture is scaled down to; None: it stays."""
    width, height = limits.size
    if limits.shrink_above is None or width * height <= limits.shrink_above:
        return None
    share = math.sqrt(limits.shrink_above / (width * height))
    return max(1, int(width * share)), max(1, int(height * share))


def _shrunk(image: Image.Image, limits: Limits) -> Image.Image:
    """Before it is RGB, where it is of a kind that can be scaled: what is large is held once."""
    size = _within(limits)
    if size is None:
        return image
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode not in _SCALED or (image.has_transparency_data and "A" not in image.mode):
        image = Image.fromarray(_flatten(image))
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


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
    """One channel of integers (from 0, of the fewest bits that pictures have) or floats (0..1, else 0..255) to 0..255.

    Values outside of these ranges widen the range: scaled, not clipped."""
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all():
        raise ImageError("the picture has values that are not finite (NaN or infinite)")
    low, high = min(float(wide.min()), 0.0), float(wide.max())
    if values.dtype.kind in "iu":
        # cameras and scanners put 10, 12 or 14 bits into 16, programs put bytes into 32
        top = next((2.0**bits - 1.0 for bits in _DEPTHS if high < 2**bits), high)
    else:
        top = 1.0 if high <= 1.0 and low >= 0.0 else max(high, 255.0)
    return np.rint((wide - low) * (255.0 / (top - low))).astype(np.uint8)


def _from_array(array: NDArray[np.generic], limits: Limits) -> Image.Image:
    name = f"the array of shape {array.shape} and type {array.dtype}"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(f"{name}: a picture is [h, w], [h, w, 1], [h, w, 3] or [h, w, 4], channels last")
    _check_size(name, array.shape[1], array.shape[0], limits)
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
