"""Turbo: tokens of a picture are merged while the vision encoder runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .. import _native
from .._checks import INT32_MAX, integer, real
from ..errors import OptionError

__all__ = ["Turbo", "to_turbo", "turbo_of"]

_FLAGS = ("once", "renumber")


@dataclass(frozen=True)
class Turbo:
    """Merge redundant tokens of a picture between attention and MLP of the encoder's blocks.

    ``Turbo(share=0.5)`` or ``Turbo(r=16)``; without either half of the tokens. The encoder itself gets faster, and
    everything behind it has fewer tokens, which keep their places in the picture's positions; or, with ``restore``, and
    in most encoders, as many as before. The mathematics is in
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
    restore: bool | None = None
    """Give every patch a token again behind the encoder's blocks, that of the token which it was merged into: the encoder
    gets faster, and makes as many tokens as without. None: where the encoder needs it, for what is behind its blocks
    wants the whole grid; there False is an error."""

    def __post_init__(self) -> None:
        if self.share is None and self.r is None:
            object.__setattr__(self, "share", 0.5)
        checked: dict[str, object] = {
            "r": None if self.r is None else integer("r", self.r, -INT32_MAX),
            "share": None
            if self.share is None
            else real("share", self.share, "a share of the tokens, such as 0.5"),
            "alpha": real("alpha", self.alpha, "a number, 0 or more"),
            "layers": None if self.layers is None else _layers(self.layers),
        }
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name} must be True or False; got {getattr(self, name)!r}")
        if self.restore is not None and not isinstance(self.restore, bool):
            raise OptionError(f"restore must be True, False or None; got {self.restore!r}")
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        _native.parse_turbo(self.spec())  # ranges, and what holds between the fields

    def spec(self) -> str:
        """As in ``LLAMA_TURBO``; :meth:`parse` reads it."""
        fields = [] if self.share is None else [f"share={self.share:.9g}"]
        fields += [] if self.r is None else [f"r={self.r}"]
        fields.append(f"alpha={self.alpha:.9g}")
        if self.layers is not None:
            fields.append(f"layers={self.layers[0]}-{self.layers[1]}")
        fields += [name for name in _FLAGS if getattr(self, name)]
        fields += [] if self.restore is None else ["restore" if self.restore else "restore=off"]
        return ",".join(fields)

    @staticmethod
    def parse(text: str) -> Turbo:
        """From text as in ``LLAMA_TURBO``: ``share=0.5`` or ``r=16``, ``alpha=0.1``, ``layers=2-20``, ``once``,
        ``renumber``, ``restore`` or ``restore=off``, separated by commas. Raises OptionError."""
        found = _native.parse_turbo(text)
        if found is None:
            raise OptionError(f"{text!r} is no Turbo: it means none")
        return Turbo(**found)

    def __str__(self) -> str:
        return self.spec().replace(",", ", ")


def to_turbo(turbo: Turbo | str | None) -> Turbo | None:
    """What users may say: a Turbo, text as in ``LLAMA_TURBO``, None or "off"."""
    if turbo is None or isinstance(turbo, Turbo):
        return turbo
    if not isinstance(turbo, str):
        raise OptionError(f"turbo must be a Turbo, text such as 'share=0.5', or None; got {turbo!r}")
    return turbo_of(_native.parse_turbo(turbo))


def turbo_of(found: dict[str, Any] | None) -> Turbo | None:
    """Of what the native module has read."""
    return None if found is None else Turbo(**found)


def _layers(value: object) -> tuple[int, int]:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise OptionError(f"layers must be the first and the last block, such as (2, 20); got {value!r}")
    return integer("layers: the first block", value[0], 0), integer("layers: the last block", value[1], 0)
