"""Turbo: tokens of a picture are merged while the vision encoder runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ._checks import integer, real
from .errors import OptionError

__all__ = ["Turbo", "to_turbo"]

_FIELDS = "share=, r=, alpha=, layers=, once, renumber"
_FLAGS = ("once", "renumber")
_OPEN = "above 0 and below 1, such as 0.5"


@dataclass(frozen=True)
class Turbo:
    """Merge redundant tokens of a picture between attention and MLP of the encoder's blocks.

    ``Turbo(share=0.5)`` or ``Turbo(r=16)``; without either half of the tokens. The encoder itself gets faster, and
    everything behind it has fewer tokens. They keep their places in the picture's positions. The mathematics is in
    ``pyfastv_turbo.h`` (Turbo, arXiv 2312.07408 and 2407.11717; FOLDER, 2501.02430). Raises OptionError.
    """

    share: float | None = None
    """Share of all tokens that is merged away, spread evenly over the blocks that merge, in (0, 1)."""
    r: int | None = None
    """Tokens merged away in each of these blocks, at least 1; with ``once`` the number of all."""
    alpha: float = 0.05
    """Weight of the semantic value, the attention of CLS (or of all tokens); 0: by redundancy alone. The mean of that
    attention is 1."""
    layers: tuple[int, int] | None = None
    """The first and the last block that merges, of those that run, from 0; None: the first half."""
    once: bool = False
    """Merge everything in the last block."""
    renumber: bool = False
    """Number the positions anew instead of keeping places; for comparison."""

    def __post_init__(self) -> None:
        if self.share is not None and self.r is not None:
            raise OptionError(f"share and r exclude each other; got {self.share!r} and {self.r!r}")
        checked: dict[str, object] = {
            "r": None if self.r is None else integer("r", self.r, 1),
            "share": None if self.r is not None else _share(0.5 if self.share is None else self.share),
            "alpha": real("alpha", self.alpha, "0 or more", 0.0, 3e38),
            "layers": None if self.layers is None else _layers(self.layers),
        }
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name} must be True or False; got {getattr(self, name)!r}")
        if self.once and self.layers is not None:
            raise OptionError(f"once merges in the last block and excludes layers; got {self.layers!r}")
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def spec(self) -> str:
        """As in ``LLAMA_TURBO``; :meth:`parse` reads it."""
        fields = [f"share={self.share:.9g}" if self.r is None else f"r={self.r}", f"alpha={self.alpha:.9g}"]
        if self.layers is not None:
            fields.append(f"layers={self.layers[0]}-{self.layers[1]}")
        fields += [name for name in _FLAGS if getattr(self, name)]
        return ",".join(fields)

    @staticmethod
    def parse(text: str) -> Turbo:
        """From text as in ``LLAMA_TURBO``: ``share=0.5`` or ``r=16``, ``alpha=0.1``, ``layers=2-20``, ``once``,
        ``renumber``, separated by commas. Raises OptionError."""
        values: dict[str, Any] = {}
        for field in text.split(","):
            key, value = _field(field)
            if key in values:
                raise OptionError(f"{field.strip()!r}: {key} is given twice")
            values[key] = value
        return Turbo(**values)

    def __str__(self) -> str:
        return self.spec().replace(",", ", ")


def to_turbo(turbo: Turbo | str | None) -> Turbo | None:
    """What users may say: a Turbo, text as in ``LLAMA_TURBO``, None or "off"."""
    if turbo is None or isinstance(turbo, Turbo):
        return turbo
    if not isinstance(turbo, str):
        raise OptionError(f"turbo must be a Turbo, text such as 'share=0.5', or None; got {turbo!r}")
    return None if turbo.strip() == "off" else Turbo.parse(turbo)


def _field(text: str) -> tuple[str, Any]:
    key, equals, value = (part.strip() for part in text.partition("="))
    if key in _FLAGS and not equals:
        return key, True
    if not equals or key not in ("share", "r", "alpha", "layers"):
        raise OptionError(f"turbo: {text.strip()!r} is none of {_FIELDS}")
    if key == "layers":
        found = re.fullmatch(r"(\d+)-(\d+)", value)
        if found is None:
            raise OptionError(f"layers must be the first and the last block, such as 2-20; got {value!r}")
        return key, (int(found[1]), int(found[2]))
    try:
        return key, int(value) if key == "r" else float(value)
    except ValueError:
        raise OptionError(f"{key} must be a number; got {value!r}") from None


def _share(value: object) -> float:
    share = real("share", value, _OPEN, 0.0, 1.0)
    if not 0.0 < share < 1.0:
        raise OptionError(f"share must be {_OPEN}; got {value!r}")
    return share


def _layers(value: object) -> tuple[int, int]:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise OptionError(f"layers must be the first and the last block, such as (2, 20); got {value!r}")
    first = integer("layers: the first block", value[0], 0)
    return first, integer(f"layers: the last block, after the first ({first}),", value[1], first)
