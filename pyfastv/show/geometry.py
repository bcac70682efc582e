"""Where visual tokens lie in a picture: from the grids of its slices to boxes of pixels on one canvas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Canvas", "boxes_of_slice", "lay_out"]

Pixels = NDArray[np.uint8]
Boxes = NDArray[np.int64]

GAP = 8
"""Pixels between slices, and between pictures."""
PAPER = 255


@dataclass(frozen=True)
class Canvas:
    """Pictures as the vision encoder saw them, side by side, and the place of every visual token.

    ``pixels``: uint8 [height, width, 3]. ``boxes``: int64 [tokens, 4], x0, y0, x1, y1 in pixels, the ends not included;
    a token without a place has an empty box, x1 = x0.
    """

    pixels: Pixels
    boxes: Boxes

    @property
    def placed(self) -> NDArray[np.bool_]:
        """[tokens] True where a token has a place."""
        return self.boxes[:, 2] > self.boxes[:, 0]

    def spread(self, values: NDArray[np.generic], background: float) -> NDArray[np.float64]:
        """Values of tokens as an image [height, width]; ``background`` where no token lies."""
        image = np.full(self.pixels.shape[:2], background, np.float64)
        for (x0, y0, x1, y1), value in zip(self.boxes, values, strict=True):
            image[y0:y1, x0:x1] = value
        return image


def boxes_of_slice(width: int, height: int, nx: int, ny: int) -> Boxes:
    """The boxes of the nx * ny tokens of a slice of so many pixels, in raster order; empty for tokens without a place.

    A slice that is one row although its pixels are not: either every row of patches ends with a token of its own
    (Pixtral), or the tokens were resampled and have no places.
    """
    if ny == 1 and nx > 1 and width < nx * height:
        return _boxes_with_row_ends(width, height, nx)
    xs = np.rint(np.arange(nx + 1) * (width / nx)).astype(np.int64)
    ys = np.rint(np.arange(ny + 1) * (height / ny)).astype(np.int64)
    boxes = [(xs[x], ys[y], xs[x + 1], ys[y + 1]) for y in range(ny) for x in range(nx)]
    return np.array(boxes, np.int64).reshape(-1, 4)


def _boxes_with_row_ends(width: int, height: int, n: int) -> Boxes:
    for ny in range(1, n + 1):
        nx, rest = divmod(n + 1, ny)
        nx -= 1
        # square patches, to half a patch
        if rest == 0 and nx > 0 and abs(nx - ny * width / height) < 0.5:
            rows = boxes_of_slice(width, height, nx, ny).reshape(ny, nx, 4)
            rows = np.concatenate([rows, np.zeros((ny, 1, 4), np.int64)], axis=1)
            return rows.reshape(-1, 4)[:n]
    return np.zeros((n, 4), np.int64)


def lay_out(pictures: Sequence[Sequence[Pixels]], grids: Sequence[Sequence[tuple[int, int]]]) -> Canvas:
    """One canvas for all slices of all pictures.

    ``pictures``: the slices of each, in prompt order; ``grids``: (nx, ny) of each. Where they do not go together (several
    slices in one grid), the picture's tokens have no places."""
    columns = [_picture(slices, sizes) for slices, sizes in zip(pictures, grids, strict=True)]
    return _beside(columns)


def _picture(slices: Sequence[Pixels], grids: Sequence[tuple[int, int]]) -> Canvas:
    if len(slices) != len(grids):
        n = sum(nx * ny for nx, ny in grids)
        return Canvas(slices[0], np.zeros((n, 4), np.int64))
    parts = [
        Canvas(pixels, boxes_of_slice(pixels.shape[1], pixels.shape[0], nx, ny))
        for pixels, (nx, ny) in zip(slices, grids, strict=True)
    ]
    if len(parts) == 1:
        return parts[0]
    overview, columns = _arrangement(slices)
    tiles = [part for number, part in enumerate(parts) if number != overview]
    rows = [_beside(tiles[start : start + columns], 1) for start in range(0, len(tiles), columns)]
    whole = _below(rows, 1)
    if overview is None:
        return whole
    # tokens stay in prompt order
    return _beside([parts[0], whole]) if overview == 0 else _beside([whole, parts[-1]])


def _arrangement(slices: Sequence[Pixels]) -> tuple[int | None, int]:
    """Which slice is the overview (None: no slice), and how many of the others lie side by side.

    Nobody tells: the other slices, put together, have to look like the overview."""
    best: tuple[float, int | None, int] = (np.inf, None, len(slices))
    for overview in (0, len(slices) - 1):
        tiles = [pixels for number, pixels in enumerate(slices) if number != overview]
        if len({pixels.shape for pixels in tiles}) > 1:
            continue
        seen = _shrink(slices[overview])
        for columns in (c for c in range(1, len(tiles) + 1) if len(tiles) % c == 0):
            rows = [
                np.concatenate(tiles[start : start + columns], 1) for start in range(0, len(tiles), columns)
            ]
            difference = float(np.abs(_shrink(np.concatenate(rows, 0)) - seen).mean())
            if difference < best[0]:
                best = (difference, overview, columns)
    return best[1], best[2]


def _shrink(pixels: Pixels, side: int = 48) -> NDArray[np.float64]:
    from PIL import Image

    image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX)
    return np.asarray(image, np.float64)


def _beside(parts: Sequence[Canvas], gap: int = GAP) -> Canvas:
    height = max(part.pixels.shape[0] for part in parts)
    width = sum(part.pixels.shape[1] for part in parts) + gap * (len(parts) - 1)
    pixels = np.full((height, width, 3), PAPER, np.uint8)
    boxes, x = [], 0
    for part in parts:
        h, w = part.pixels.shape[:2]
        pixels[:h, x : x + w] = part.pixels
        boxes.append(part.boxes + np.array([x, 0, x, 0]))
        x += w + gap
    return Canvas(pixels, np.concatenate(boxes))


def _below(parts: Sequence[Canvas], gap: int = GAP) -> Canvas:
    width = max(part.pixels.shape[1] for part in parts)
    height = sum(part.pixels.shape[0] for part in parts) + gap * (len(parts) - 1)
    pixels = np.full((height, width, 3), PAPER, np.uint8)
    boxes, y = [], 0
    for part in parts:
        h, w = part.pixels.shape[:2]
        pixels[y : y + h, :w] = part.pixels
        boxes.append(part.boxes + np.array([0, y, 0, y]))
        y += h + gap
    return Canvas(pixels, np.concatenate(boxes))
