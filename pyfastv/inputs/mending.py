"""Files that browsers show and Pillow refuses, made such that Pillow takes them."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
from PIL import Image, ImageFile

__all__ = ["MENDABLE", "mended"]

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
MENDABLE = (_PNG, _JPEG)
"""What the files begin with that :func:`mended` knows."""

_JPEG_END = b"\xff\xd9"

_LIMIT = 2**20  # bytes of a text in a PNG file, unpacked, that Pillow takes
_WITH_ORIENTATION = (b"XML:com.adobe.xmp", b"Raw profile type exif")

# Colors that no row of a picture has from end to end, to tell the rows that were decoded from the others.
_UNTOUCHED = {"L": (137,), "RGB": (1, 254, 3), "CMYK": (1, 254, 3, 252)}
_LAST_ROWS = 16  # that are lost with the last bytes: the blocks of a JPEG file are up to 16 rows high
_SHARE_OF_ROWS = 8  # of so many rows one may be missing besides

_COLUMNS = 64  # of a row that are looked at

_MARKER = re.compile(rb"\xff([\xc0-\xcf\xda-\xfe])")
_START_OF_SCAN = b"\xda"


def mended(data: bytes) -> bytes | None:
    """A file with the same picture; None: there is nothing to be mended, or too much of the picture is missing."""
    if data.startswith(_PNG):
        bare = _without_metadata(data)
        return None if len(bare) == len(data) else bare
    if data.startswith(_JPEG) and _is_nearly_whole(data):
        return data + _JPEG_END
    return None


def _without_metadata(png: bytes) -> bytes:
    """Only the pixels, the palette, transparency and orientation: what else there is cannot damage them."""
    return _PNG + b"".join(
        png[begin:end]
        for begin, end, kind in _chunks(png)
        if kind[:1].isupper()
        or kind == b"tRNS"
        or (kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt") and _tells_orientation(kind, png[begin:end]))
    )


def _chunks(png: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Begin, end and kind of each; the last one may be cut off."""
    at = len(_PNG)
    while at + 8 <= len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        yield at, min(end, len(png)), png[at + 4 : at + 8]
        at = end


def _tells_orientation(kind: bytes, chunk: bytes) -> bool:
    body, checksum = chunk[8:-4], chunk[-4:]
    if zlib.crc32(chunk[4:-4]).to_bytes(4, "big") != checksum:
        return False
    if kind == b"eXIf":
        return True
    keyword, _, rest = body.partition(b"\0")
    if keyword not in _WITH_ORIENTATION:
        return False
    if kind == b"iTXt":
        is_packed, packed = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[-1]
    else:
        is_packed, packed = kind == b"zTXt", rest[1:]
    if not is_packed:
        return len(rest) <= _LIMIT
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(packed, _LIMIT)
    except zlib.error:
        return False
    return not unpacker.unconsumed_tail


def _is_nearly_whole(jpeg: bytes) -> bool:
    """Is nothing missing but the last rows, or the last refinement?"""
    try:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
            if "progressive" in image.info:
                return _is_refined(jpeg)
            allowed = _LAST_ROWS + image.height // _SHARE_OF_ROWS
            return image.height - _decoded_rows(image) <= allowed
    except MemoryError:
        raise
    except Exception:  # decoders raise anything on damaged data
        return False


def _decoded_rows(image: ImageFile.ImageFile) -> int:
    """Of a JPEG file that ends early."""
    untouched = _UNTOUCHED[image.mode]
    image.im = Image.new(image.mode, image.size, untouched if len(untouched) > 1 else untouched[0]).im
    with suppress(OSError):  # it ends early
        image.load()
    image.tile = []  # what was decoded stays
    some_columns = image.resize((min(image.width, _COLUMNS), image.height), Image.Resampling.NEAREST)
    rows = np.asarray(some_columns).reshape(image.height, -1, len(untouched))
    decoded = (rows != np.array(untouched, np.uint8)).any((1, 2))
    return int(decoded.nonzero()[0][-1]) + 1 if decoded.any() else 0


def _is_refined(jpeg: bytes) -> bool:
    """Has the last scan of the first component, brightness, begun: the one with the lowest bits of all coefficients?"""
    first: bytes | None = None
    at = 2
    while found := _MARKER.search(jpeg, at):
        at = found.end()
        segment = jpeg[at : at + int.from_bytes(jpeg[at : at + 2], "big")]
        at += max(len(segment), 2)
        if found[1] != _START_OF_SCAN or len(segment) < 6:
            continue
        components = segment[3 : 3 + 2 * segment[2] : 2]
        last_coefficient, bits = segment[-2], segment[-1]
        first = components[:1] if first is None else first
        if first in components and last_coefficient == 63 and bits & 15 == 0:
            return True
    return False
