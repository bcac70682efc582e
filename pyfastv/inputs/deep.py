"""Colors of 16 bits: Pillow reads their high bytes alone, which is nothing of a picture that has 12 bits in them."""

from __future__ import annotations

import sys
from typing import Any

from PIL import ImageFile

__all__ = ["has_low_bytes", "take_low_bytes"]

_HIGH_LAST, _HIGH_FIRST = "RGB;16L", "RGB;16B"
_NATIVE = "RGB;16N"
_OTHER_BYTE = {
    _HIGH_LAST: _HIGH_FIRST,
    _HIGH_FIRST: _HIGH_LAST,
    _NATIVE: _HIGH_FIRST if sys.byteorder == "little" else _HIGH_LAST,
}


def has_low_bytes(image: ImageFile.ImageFile) -> bool:
    """Of a picture that is not decoded yet: has it opaque colors of 16 bits?"""
    return bool(image.tile) and all(_form(tile) in _OTHER_BYTE for tile in image.tile)


def take_low_bytes(image: ImageFile.ImageFile) -> None:
    """When it is decoded, its pixels will be the low bytes in place of the high ones."""
    image.tile = [_with_other_byte(tile) for tile in image.tile]


def _form(tile: Any) -> object:
    """Pillow's name of how the bytes of a tile lie."""
    arguments = tile[3]
    return arguments[0] if isinstance(arguments, tuple) and arguments else arguments


def _with_other_byte(tile: Any) -> Any:
    arguments = tile[3]
    other = _OTHER_BYTE[str(_form(tile))]
    changed = (other, *arguments[1:]) if isinstance(arguments, tuple) else other
    return tile._replace(args=changed) if hasattr(tile, "_replace") else (*tile[:3], changed)
