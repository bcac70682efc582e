"""Skip: patches of a picture that their neighbours predict are not encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .. import _native
from .._checks import real
from ..errors import OptionError

__all__ = ["Skip", "skip_of", "to_skip"]


@dataclass(frozen=True)
class Skip:
    """Leave out of a picture, before the vision encoder, what its neighbours predict: margins, flat areas.

    The encoder and everything behind it have fewer tokens, which keep their places. ``Skip()`` leaves out what is the
    same, pixel by pixel; a larger ``tau`` what is nearly so. The rule is in ``pyfastv_skip.h`` (PixelPrune, arXiv
    2604.00886). Raises OptionError.
    """

    tau: float = 0.0
    """Largest difference of a channel to what stands for it, of 255, in [0, 255]."""

    def __post_init__(self) -> None:
        tau = real("tau", self.tau, "a number from 0 to 255", 0, 255)
        object.__setattr__(self, "tau", tau)
        _native.parse_skip(self.spec())

    def spec(self) -> str:
        """As in ``LLAMA_SKIP``; :meth:`parse` reads it."""
        return f"tau={self.tau:.9g}"

    @staticmethod
    def parse(text: str) -> Skip:
        """From text as in ``LLAMA_SKIP``: ``tau=8``. Raises OptionError."""
        found = skip_of(_native.parse_skip(text))
        if found is None:
            raise OptionError(f"{text!r} is no Skip: it means none")
        return found

    def __str__(self) -> str:
        return self.spec()


def to_skip(skip: Skip | str | None) -> Skip | None:
    """What users may say: a Skip, text as in ``LLAMA_SKIP``, None or "off"."""
    if skip is None or isinstance(skip, Skip):
        return skip
    if not isinstance(skip, str):
        raise OptionError(f"skip must be a Skip, text such as 'tau=8', or None; got {skip!r}")
    return skip_of(_native.parse_skip(skip))


def skip_of(found: dict[str, Any] | None) -> Skip | None:
    """Of what the native module has read."""
    return None if found is None else Skip(**found)
