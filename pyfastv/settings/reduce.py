"""Reducers: fewer visual tokens between the projector and the language model."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from .. import _native
from .._checks import INT32_MAX, integer, real
from ..errors import OptionError

__all__ = [
    "EVS",
    "REDUCERS",
    "CDPruner",
    "DivPrune",
    "Merge",
    "PLLaVA",
    "Pool",
    "Reducer",
    "Stride",
    "VidCom2",
    "reducer_of",
    "to_reducer",
]


@dataclass(frozen=True)
class Reducer:
    """Base of the reducers; what they have in common. Each raises OptionError for values out of range.

    Every token that is left keeps its place in the picture: kept ones their own position, merged ones that of their
    heaviest member (of equals the first), pooled ones that of the patch at their window's center (between two the
    earlier). Text behind the picture stands where it would stand without the reducer. ``keep`` is a number of tokens of
    the picture, or of all frames of a video, if it is 1 or more, and a share of them below 1 (half to even, at least
    one token).
    """

    name: ClassVar[str]
    """In text."""

    renumber: bool = field(default=False, kw_only=True)
    """Tokens at consecutive positions instead: for comparison only."""

    def __post_init__(self) -> None:
        if type(self) is Reducer:
            raise OptionError(f"Reducer itself reduces nothing: use one of {', '.join(REDUCERS)}")
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None or item.default is not None:
                object.__setattr__(self, item.name, _typed(item.name, value))
        read = _native.parse_reducer(self.spec())  # ranges, and what holds between the fields
        assert read is not None
        for name, value in read[1].items():
            object.__setattr__(self, name, value)

    def spec(self) -> str:
        """As text: ``divprune,keep=288``. :func:`to_reducer` reads it."""
        parts = [self.name]
        for item in fields(self):
            value = getattr(self, item.name)
            if value is True and item.name != "renumber":
                parts.append(item.name)
            elif value is not None and not isinstance(value, bool):
                parts.append(f"{item.name}={value!r}")
        return ",".join(parts + ["renumber"] * self.renumber)

    def __str__(self) -> str:
        return self.spec().replace(",", ", ")


@dataclass(frozen=True)
class Pool(Reducer):
    """The average over windows of patches, slice by slice: the plain alternative, which costs nothing to choose."""

    name = "pool"

    window: int | None = None
    """Side of a window in patches; windows at the right and lower edge may be smaller. 2 if ``keep`` is not given."""
    keep: float | None = None
    """In place of ``window``: windows as equal as can be, about as many as this and not more."""


@dataclass(frozen=True)
class Stride(Reducer):
    """Evenly spaced tokens in raster order."""

    name = "stride"

    keep: float


@dataclass(frozen=True)
class Merge(Reducer):
    """Similar tokens become their average: rounds of bipartite matching, raster order restored.

    The matching is that of Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, arXiv 2210.09461, section 3;
    merging once, at the end, is after Wang et al., "FOLDER", arXiv 2501.02430.
    """

    name = "merge"

    keep: float
    scale: bool = False
    """A merged token is multiplied by 1 + log(number of tokens in it)."""


@dataclass(frozen=True)
class DivPrune(Reducer):
    """Tokens that are as far from each other as can be: greedy max-min diversity by cosine distance.

    Alvar et al., "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", CVPR 2025,
    arXiv 2503.02175.
    """

    name = "divprune"

    keep: float


@dataclass(frozen=True)
class CDPruner(Reducer):
    """Tokens that are unlike each other and relevant to the question: greedy MAP of a determinantal point process.

    Zhang et al., "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs",
    arXiv 2506.10967. Relevance is the cosine to the mean embedding of the text behind the picture, scaled to [0, 1]; the
    paper takes that of CLIP's text encoder, which a GGUF file does not have. In a conversation the first question counts.
    """

    name = "cdpruner"

    keep: float


@dataclass(frozen=True)
class VidCom2(Reducer):
    """A video's frames share a budget: more for frames that are unlike the whole, in them the tokens that are.

    Liu et al., "Video Compression Commander", EMNLP 2025, arXiv 2505.14454.
    """

    name = "vidcom2"

    keep: float


@dataclass(frozen=True)
class EVS(Reducer):
    """Patches that changed little since the frame before go; the first frame stays.

    Bagrov et al., "Efficient Video Sampling", arXiv 2510.14624.
    """

    name = "evs"

    drop: float
    """Share of a video's tokens that goes, in [0, 1); never more than all frames but the first."""


@dataclass(frozen=True)
class PLLaVA(Reducer):
    """The average over groups of frames and windows of patches.

    Xu et al., "PLLaVA: Parameter-free LLaVA Extension from Images to Videos", arXiv 2404.16994.
    """

    name = "pllava"

    frames: int = 4
    """Groups of frames, as equal as can be; at most as many as there are frames."""
    window: int = 2
    """Side of a window in patches."""


REDUCERS: dict[str, type[Reducer]] = {
    kind.name: kind for kind in (Pool, Stride, Merge, DivPrune, CDPruner, VidCom2, EVS, PLLaVA)
}
"""By their names in text."""


def to_reducer(value: object) -> Reducer | None:
    """What ``reduce=`` takes: a reducer, text such as "divprune,keep=288"; None or "off": none. Raises OptionError."""
    if value is None or isinstance(value, Reducer):
        return value
    if not isinstance(value, str):
        raise OptionError(
            f"reduce must be a Reducer, text such as 'divprune,keep=288', or None; got {value!r}"
        )
    return reducer_of(_native.parse_reducer(value))


def reducer_of(found: tuple[str, dict[str, Any]] | None) -> Reducer | None:
    """Of what the native module has read."""
    return None if found is None else REDUCERS[found[0]](**found[1])


_FLAGS = ("scale", "renumber")


def _typed(name: str, value: object) -> bool | int | float:
    if name in _FLAGS:
        if not isinstance(value, bool):
            raise OptionError(f"reduce: {name} must be True or False; got {value!r}")
        return value
    if name in ("keep", "drop"):
        return real(f"reduce: {name}", value, "a number")
    return integer(f"reduce: {name}", value, -INT32_MAX)
