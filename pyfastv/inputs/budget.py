"""How many visual tokens a picture may have, and the size that it is scaled to for that.

Counts are those of the model's own preprocessor, which is asked: nothing of its rules is written down here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any, NamedTuple, TypeAlias, TypedDict, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .._checks import INT32_MAX, integer, shown
from ..errors import ImageError, OptionError

__all__ = [
    "LOW_DETAIL_TOKENS",
    "PICTURE_OPTIONS",
    "Budget",
    "Fitted",
    "PictureOptions",
    "SeenPicture",
    "Shape",
    "Sized",
    "as_seen",
    "fit",
    "scaled",
    "tokens_of_text",
]

LOW_DETAIL_TOKENS = 256
"""Most visual tokens of a picture that is asked about with OpenAI's ``detail: "low"``."""

_DETAILS = ("low", "high", "auto", "original")

_STEP = 0.97  # from one size that is tried to the next
_MOST_PIXELS = 64_000_000  # of a picture that is enlarged
_LONGEST = 65_000  # libmtmd resizes to no more


class PictureOptions(TypedDict, total=False):
    """Keywords of :meth:`pyfastv.Runner.ask` and its siblings."""

    image_tokens: int | Sequence[int] | str | None
    """Most visual tokens of a picture, or of a frame; or the least and the most, (64, 256) or "64-256". See
    :class:`Budget`."""
    enlarge: bool | None
    """May preprocessors that scale every picture to one size enlarge it? None: unless ``image_tokens`` are given."""


PICTURE_OPTIONS = tuple(PictureOptions.__annotations__)


class Shape(NamedTuple):
    """What the preprocessor makes of a picture."""

    tokens: int
    """Visual tokens, before Turbo and reducers."""
    tiles: int
    """That are encoded, the overview among them."""
    width: int
    """Of the first of them, in pixels."""
    height: int


ShapeOf: TypeAlias = "Callable[[int, int], Shape]"
"""Of a picture of so many pixels in width and height."""


class SeenPicture(NamedTuple):
    """What became of a picture of a prompt, or of a frame; sizes are (width, height) in pixels."""

    size: tuple[int, int]
    """As it was given."""
    scaled: tuple[int, int]
    """As it came to the model's preprocessor: smaller where a budget, or a limit on pixels, has shrunk it."""
    tiles: int
    """That were encoded, the overview among them."""
    tile: tuple[int, int]
    """The first of them, as the encoder sees it."""
    tokens: int
    """Visual tokens, before Turbo and reducers."""

    @property
    def was_scaled(self) -> bool:
        return self.size != self.scaled

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = self._asdict().items()
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values}

    def __str__(self) -> str:
        width, height = self.size
        made = f" scaled to {self.scaled[0]} x {self.scaled[1]}," if self.was_scaled else ""
        tiles = "" if self.tiles == 1 else f"{self.tiles} tiles of "
        return f"{width} x {height},{made} encoded as {tiles}{self.tile[0]} x {self.tile[1]}, {self.tokens} tokens"


@dataclass(frozen=True)
class Budget:
    """How many visual tokens each picture of a request may have, before Turbo and reducers.

    A picture with more is scaled down, its aspect kept, to the largest size whose count is not above ``most``; one with
    fewer than ``least`` is scaled up, to the smallest size that has them. As said, nothing is scaled."""

    least: int = 1
    most: int | None = None
    enlarge: bool = True
    """May preprocessors that scale every picture to one size (idefics3: its longest edge to 2048 pixels) enlarge it?"""
    lenient: bool = False
    """Where the model cannot have as few tokens, it has the fewest that it can; else that is an error."""

    @classmethod
    def of(
        cls,
        image_tokens: int | Sequence[int] | str | None = None,
        enlarge: bool | None = None,
        default: Budget | None = None,
    ) -> Budget:
        """What users say; ``default``: where they say nothing. Raises OptionError."""
        if enlarge is not None and not isinstance(enlarge, bool):
            raise OptionError(f"enlarge must be True, False or None; got {shown(enlarge)}")
        if isinstance(image_tokens, str):
            image_tokens = tokens_of_text(image_tokens)
        if image_tokens is None:
            known = cls() if default is None else default
            return known if enlarge is None else replace(known, enlarge=enlarge)
        least, most = _pair(image_tokens)
        return cls(least, most, False if enlarge is None else enlarge)

    @classmethod
    def of_options(cls, options: Mapping[str, Any], default: Budget) -> Budget:
        """Of the keywords of a request, among others. Raises OptionError."""
        given = cast(PictureOptions, options)
        return cls.of(given.get("image_tokens"), given.get("enlarge"), default)

    @property
    def is_off(self) -> bool:
        """Pictures are what llama.cpp makes of them."""
        return self.least == 1 and self.most is None and self.enlarge

    def with_detail(self, detail: str | None) -> Budget:
        """Of a picture with OpenAI's ``detail``: "low" is at most :data:`LOW_DETAIL_TOKENS`, or as few as the model can
        have; the others ask for nothing. Raises OptionError."""
        if detail is None:
            return self
        if detail not in _DETAILS:
            raise OptionError(f"detail must be one of {', '.join(_DETAILS)}; got {shown(detail)}")
        if detail != "low" or (self.most is not None and self.most <= LOW_DETAIL_TOKENS):
            return self
        return Budget(min(self.least, LOW_DETAIL_TOKENS), LOW_DETAIL_TOKENS, False, lenient=True)

    def __str__(self) -> str:
        if self.most is None:
            return f"at least {self.least} tokens"
        return f"at most {self.most} tokens" if self.least == 1 else f"{self.least} to {self.most} tokens"


class Sized(NamedTuple):
    """A picture of a message with OpenAI's ``detail``."""

    picture: Any
    detail: str


class Fitted(NamedTuple):
    """The size that a picture is scaled to, and what the preprocessor makes of it then."""

    width: int
    height: int
    shape: Shape


def tokens_of_text(text: str) -> int | tuple[int, int]:
    """``image_tokens`` as text: "256", or "64-256", the least and the most. Raises OptionError."""
    numbers = text.split("-")
    if not 1 <= len(numbers) <= 2 or not all(part.isascii() and part.strip().isdecimal() for part in numbers):
        raise OptionError(f'image_tokens must be a number, or two as in "64-256"; got {shown(text)}')
    found = [integer("image_tokens", _number(part), 1) for part in numbers]
    return found[0] if len(found) == 1 else (found[0], found[1])


def _number(text: str) -> int:
    return int(text) if len(text) < 20 else INT32_MAX + 1


def _pair(image_tokens: object) -> tuple[int, int]:
    if isinstance(image_tokens, (list, tuple)):
        if len(image_tokens) != 2:
            raise OptionError(
                "image_tokens must be the most visual tokens of a picture, or the least and the most; got "
                f"{shown(image_tokens)}"
            )
        least = integer("image_tokens: the least", image_tokens[0], 1)
        most = integer("image_tokens: the most", image_tokens[1], 1)
        if least > most:
            raise OptionError(f"image_tokens: the least, {least}, is more than the most, {most}")
        return least, most
    return 1, integer("image_tokens", image_tokens, 1)


def fit(width: int, height: int, budget: Budget, shape_of: ShapeOf) -> Fitted:
    """The size for a picture of ``width`` x ``height`` pixels. ``shape_of``: of a picture that may be enlarged by the
    preprocessor as the budget says.

    Sizes are tried in steps, and between the last that has too many tokens and the first that has not by halves: counts
    of models that cut pictures into tiles neither grow evenly nor always. Raises OptionError where none is right, with
    the counts that there are."""
    shape = shape_of(width, height)
    if budget.most is not None and shape.tokens > budget.most:
        return _shrunk(Fitted(width, height, shape), budget, shape_of)
    if shape.tokens < budget.least:
        return _grown(Fitted(width, height, shape), budget, shape_of)
    return Fitted(width, height, shape)


def _shrunk(given: Fitted, budget: Budget, shape_of: ShapeOf) -> Fitted:
    most = cast(int, budget.most)
    longest = max(given.width, given.height)

    def at(edge: int) -> Fitted:
        size = _of_edge(given, edge)
        return Fitted(*size, shape_of(*size))

    above, edge, fewest = longest, longest, given
    while True:
        if edge == 1:
            return _fewest(given, fewest, budget)
        edge = max(1, min(edge - 1, int(edge * _STEP)))
        tried = at(edge)
        if tried.shape.tokens <= most:
            break
        fewest = min(fewest, tried, key=lambda one: one.shape.tokens)
        above = edge
    below = tried
    while above - edge > 1:
        middle = (above + edge) // 2
        tried = at(middle)
        if tried.shape.tokens <= most:
            edge, below = middle, tried
        else:
            above = middle
    if below.shape.tokens < budget.least and not budget.lenient:
        raise OptionError(
            f"image_tokens: no size of a picture of {given.width} x {given.height} has {budget}: "
            f"the next have {below.shape.tokens} and {at(above).shape.tokens}"
        )
    return _resampled_once(given, below, shape_of)


def _fewest(given: Fitted, fewest: Fitted, budget: Budget) -> Fitted:
    if budget.lenient:
        return fewest
    few = fewest.shape.tokens
    raise OptionError(
        f"image_tokens: {budget} were asked for, but of a picture of {given.width} x {given.height} this model makes "
        f"at least {few}, scaled down as far as it goes: ask for {few} or more"
        + (", or leave enlarge=True out" if budget.enlarge else "")
    )


def _grown(given: Fitted, budget: Budget, shape_of: ShapeOf) -> Fitted:
    longest = max(given.width, given.height)
    by_pixels = isqrt(_MOST_PIXELS * longest // min(given.width, given.height))
    largest = min(_LONGEST, by_pixels)
    below, edge, many = longest, longest, given
    while True:
        if edge >= largest:
            raise OptionError(
                f"image_tokens: {budget} were asked for, but this model makes no more than {many.shape.tokens} of a "
                f"picture of {given.width} x {given.height}"
            )
        edge = min(largest, max(edge + 1, int(edge / _STEP)))
        size = _of_edge(given, edge)
        above = Fitted(*size, shape_of(*size))
        if above.shape.tokens >= budget.least:
            break
        many = max(many, above, key=lambda one: one.shape.tokens)
        below = edge
    while edge - below > 1:
        middle = (edge + below) // 2
        size = _of_edge(given, middle)
        tried = Fitted(*size, shape_of(*size))
        if tried.shape.tokens >= budget.least:
            edge, above = middle, tried
        else:
            below = middle
    if budget.most is not None and above.shape.tokens > budget.most:
        raise OptionError(
            f"image_tokens: no size of a picture of {given.width} x {given.height} has {budget}: "
            f"the next have {many.shape.tokens} and {above.shape.tokens}"
        )
    return above


def _of_edge(given: Fitted, edge: int) -> tuple[int, int]:
    """The size with this longest edge, aspect kept to half a pixel."""
    longest = max(given.width, given.height)
    width, height = (max(1, (2 * side * edge + longest) // (2 * longest)) for side in given[:2])
    return width, height


def _resampled_once(given: Fitted, found: Fitted, shape_of: ShapeOf) -> Fitted:
    """The size of this aspect that just lies within what the encoder sees, so that the preprocessor resizes nothing."""
    shape = found.shape
    if shape.tiles != 1 or shape.width >= given.width or shape.height >= given.height:
        return found
    edge = min(
        max(given.width, given.height) * shape.width // given.width,
        max(given.width, given.height) * shape.height // given.height,
    )
    size = _of_edge(given, max(1, edge))
    if size[0] <= shape.width and size[1] <= shape.height and shape_of(*size) == shape:
        return Fitted(*size, shape)
    return found


def as_seen(
    pixels: NDArray[np.uint8],
    budget: Budget,
    fit_of: Callable[[int, int, Budget], Fitted],
    size: tuple[int, int] | None = None,
) -> tuple[NDArray[np.uint8], SeenPicture | None]:
    """A picture, RGB [h, w, 3], scaled to a budget, and what becomes of it; None: it cannot be prepared, which will be
    told where it is evaluated. ``fit_of``: :func:`fit`, of a model; ``size``: of what was given, None: of the picture.
    Raises OptionError."""
    height, width, _ = pixels.shape
    try:
        fitted = fit_of(width, height, budget)
    except ImageError:
        return pixels, None
    shape, made = fitted.shape, (fitted.width, fitted.height)
    told = SeenPicture(size or (width, height), made, shape.tiles, (shape.width, shape.height), shape.tokens)
    return scaled(pixels, *made), told


def scaled(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """RGB [h, w, 3] resampled to [height, width, 3], bicubic and, where it shrinks, without aliases; as it is if that is
    its size."""
    if pixels.shape[:2] == (height, width):
        return pixels
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(image, dtype=np.uint8, order="C")
