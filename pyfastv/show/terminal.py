"""Pictures inside a terminal that can show them."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from PIL import Image

__all__ = ["can_show", "print_image"]


def can_show() -> bool:
    """Is stdout a terminal with a protocol for pictures (kitty's, or sixel as iTerm2 has it)?"""
    return sys.stdout.isatty() and _renderable() is not None


def print_image(image: Image.Image) -> None:
    """Print a picture as wide as the terminal; :func:`can_show` has to be true."""
    from rich.console import Console

    Console().print(_renderable()(image, width="100%"))


def _renderable() -> Any:
    """textual-image's class for this terminal, which it asks when imported; None where it would draw with letters."""
    try:
        renderable = import_module("textual_image.renderable")
    except ImportError:  # the extra "show"
        return None
    except Exception:  # a terminal that answers nonsense
        return None
    best = renderable.Image
    return best if best in (renderable.TGPImage, renderable.SixelImage) else None
