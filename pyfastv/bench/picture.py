"""The picture that is measured with unless another one is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["drawn_picture", "save_picture"]

SIDE = 672


def drawn_picture(side: int = SIDE) -> NDArray[np.uint8]:
    """Always the same, (side, side, 3): gradients under a coarse and a fine pattern."""
    y, x = np.mgrid[0:side, 0:side]
    waves = np.sin(x / 9.0) * np.cos(y / 13.0) + 0.3 * np.sin(x * y / 997.0)
    planes = [255 * x / side + 40 * waves, 255 * y / side - 40 * waves, 128 + 90 * waves]
    return np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)


def save_picture(folder: Path) -> Path:
    """As a JPEG file in ``folder``, as photographs are."""
    path = folder / "picture.jpg"
    Image.fromarray(drawn_picture()).save(path, quality=90)
    return path
