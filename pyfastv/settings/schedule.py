"""Schedules: from which layer on how many visual tokens are left out, and by what rule."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from .. import _native
from .._checks import integer, real
from ..errors import OptionError

__all__ = [
    "MAX_CUTS",
    "PICKS",
    "RECALL",
    "SCORES",
    "Cut",
    "LayerWarning",
    "Schedule",
    "fitted",
    "schedule_of",
]

MAX_CUTS = _native.MAX_CUTS
RECALL = _native.RECALL

SCORES = _native.SCORES
"""What ranks the visual tokens at a cut; see :class:`Cut`."""
PICKS = _native.PICKS
"""How the tokens to keep are picked, given their scores; see :class:`Cut`."""

_FLAGS = ("weigh", "merge")
_FASTV = ("last", "top-k", False, False)  # score, pick, weigh, merge


class LayerWarning(UserWarning):
    """The model cannot be cut at a layer that a schedule names: the cut is at the next one where it can."""


@dataclass(frozen=True, init=False)
class Cut:
    """From one layer on, a part of every picture's tokens is left out. Raises OptionError.

    Of a picture's n tokens round(n * (1 - drop)) stay (half to even; at least 1 unless drop is 1), in prompt
    order and at their own positions. Whether the layer is within a model's is checked by the runner; from one where the
    model cannot be cut (docs/models.md), the cut moves to the next where it can.

    ``score``, ``pick``, ``weigh`` and ``merge`` are its rule. Where none of them is given, it is that of
    :class:`pyfastv.Recommended`; where some are, the others are as FastV has them: "last", "top-k", False, False.
    """

    layer: int | str
    """The first layer that does not see all: a number, at least 1, or a share of the layers such as "25%"."""
    drop: float
    """Share of a picture's tokens that layers from here on do not see, in [0, 1]: of all that the picture has, not of
    those that an earlier cut left."""
    score: str
    """What ranks the tokens: one of :data:`SCORES`, such as "question-max" or "random7", 7 being a seed. docs/methods.md
    has whose attention each counts."""
    pick: str
    """How the tokens to keep are picked, given their scores: one of :data:`PICKS`, such as "cover", or "window4" with the
    number that it takes. docs/methods.md has what each keeps."""
    weigh: bool
    """A kept token counts in attention, from here to the next cut, as often as the tokens that it stands for: itself and
    the dropped ones of its picture that are most similar to it (as in ToMe, arXiv 2210.09461, section 3.2)."""
    merge: bool
    """Dropped rows are averaged into the kept row of the same picture that is nearest by cosine."""

    def __init__(
        self,
        layer: int | str,
        drop: float,
        score: str | None = None,
        pick: str | None = None,
        weigh: bool | None = None,
        merge: bool | None = None,
    ) -> None:
        share = real("drop", drop, "a share of the visual tokens in [0, 1], such as 0.5")
        checked = _native.check_cut(
            _layer(layer),
            share,
            _name("score", score),
            _name("pick", pick),
            _flag("weigh", weigh),
            _flag("merge", merge),
        )
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def spec(self) -> str:
        """As in ``LLAMA_FASTV``, with its rule; what of that is as FastV has it is left out."""
        fields = [f"k={self.layer}", f"drop={_number(self.drop)}"]
        if self.score != _FASTV[0] or _is_fastv(self):
            fields.append(f"score={self.score}")
        if self.pick != _FASTV[1]:
            fields.append(f"pick={self.pick}")
        fields += [name for name in _FLAGS if getattr(self, name)]
        return ",".join(fields)


def _is_fastv(cut: Cut) -> bool:
    """Is its rule FastV's own?"""
    return (cut.score, cut.pick, cut.weigh, cut.merge) == _FASTV


@dataclass(frozen=True, repr=False)
class Schedule:
    """Cuts, in the order of their layers; the layers between two cuts are a stage. Raises OptionError.

    The presets (:class:`pyfastv.Recommended`, :class:`pyfastv.FastV`, ...) are schedules with a name. Schedules
    with the same values are equal.
    """

    cuts: Sequence[Cut]
    """1 to 8, layers ascending, drop never descending; kept as a tuple."""
    recall: float = RECALL
    """Share of a picture's tokens that one later question in a conversation may bring back at a cut; 0 or False: none,
    the first choice stays."""
    cells: int | str | None = None
    """KV cells of the later stages; None: as many as the first stage has, "auto": by drop."""

    def __post_init__(self) -> None:
        cuts = (self.cuts,) if isinstance(self.cuts, Cut) else self.cuts
        if not isinstance(cuts, Sequence) or not all(isinstance(cut, Cut) for cut in cuts):
            raise OptionError(f"cuts must be Cuts; got {self.cuts!r}")
        if not 1 <= len(cuts) <= MAX_CUTS:
            raise OptionError(f"a schedule has 1 to {MAX_CUTS} cuts; got {len(cuts)}")
        object.__setattr__(self, "cuts", tuple(cuts))
        object.__setattr__(self, "recall", _recall(self.recall))
        object.__setattr__(self, "cells", _cells(self.cells))
        _native.parse_schedule(self.spec())  # what holds between the fields

    def spec(self) -> str:
        """As in ``LLAMA_FASTV``, each cut with its rule. :meth:`parse` reads it."""
        fields = [";".join(cut.spec() for cut in self.cuts)]
        if len(self.cuts) == 1 and _is_fastv(self.cuts[0]):
            fields = [f"fastv,{fields[0].removesuffix(f',score={_FASTV[0]}')}"]
        if self.recall != RECALL:
            fields.append(f"recall={_number(self.recall)}")
        if self.cells is not None:
            fields.append(f"cells={self.cells}")
        return ",".join(fields)

    @staticmethod
    def parse(text: str) -> Schedule:
        """From text as in ``LLAMA_FASTV``: cuts separated by ``;``, their fields by ``,``.

        ``k=2`` or ``k=25%``, ``drop=0.5``, ``score=...`` and ``pick=...`` as in :class:`Cut`, ``weigh``, ``merge``;
        and, in any cut, for all of them ``recall=0.025`` and ``cells=2048`` or ``cells=auto``. A cut that names nothing
        of its rule has the recommended one, and where it names a part, the others are as FastV has them, as in
        :class:`Cut`. Or the name of a preset, and what differs from it: ``fastv,k=4,drop=0.75`` is FastV's own rule.
        Raises OptionError.
        """
        found = _native.parse_schedule(text)
        if found is None:
            raise OptionError(f"{text!r} is no schedule: it means none")
        return schedule_of(found)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def _values(self) -> tuple[object, ...]:
        return self.cuts, self.recall, self.cells

    def __repr__(self) -> str:
        return f"Schedule.parse({self.spec()!r})"

    def __str__(self) -> str:
        name = "" if type(self) is Schedule else f"{type(self).__name__} "
        text = self.spec().removeprefix("fastv," if name else "")
        return name + text.replace(",", ", ").replace(";", "; ")


def fitted(schedule: Schedule, layers: Sequence[tuple[int, int]], model: str) -> Schedule:
    """With its cuts where a model can be cut; the schedule itself if none moves. ``layers``: of each cut the layer that
    it names, and where it has to be. Warns of what moves; Python's filters show it once, if nobody has changed them."""
    if all(asked == taken for asked, taken in layers):
        return schedule
    for asked, taken in layers:
        if asked != taken:
            warnings.warn(
                f"{model} cannot be cut at layer {asked}: the cut is at layer {taken}, the next that is possible",
                LayerWarning,
                stacklevel=2,
            )
    moved = copy(schedule)  # a preset keeps its name
    cuts = zip(schedule.cuts, layers, strict=True)
    object.__setattr__(
        moved,
        "cuts",
        tuple(cut if asked == taken else replace(cut, layer=taken) for cut, (asked, taken) in cuts),
    )
    return moved


def schedule_of(found: dict[str, Any]) -> Schedule:
    """Of what the native module has read."""
    return Schedule([Cut(**cut) for cut in found["cuts"]], found["recall"], found["cells"])


def _layer(value: object) -> str:
    """As in text."""
    if isinstance(value, str) and value.endswith("%"):
        return value
    try:
        return str(integer("k", value, 1))
    except OptionError:
        pass
    raise OptionError(
        "k, the layer of a cut, must be an integer, at least 1, or a share of the layers such as '25%'; "
        f"got {value!r}"
    )


def _recall(value: object) -> float:
    if isinstance(value, bool):
        return RECALL if value else 0.0
    return real("recall", value, "a share of a picture's tokens in [0, 1]; 0 or False: none", 0.0, 1.0)


def _cells(value: object) -> int | str | None:
    return (
        value if value in (None, "auto") else integer("cells (None: as the first stage, or 'auto')", value, 1)
    )  # type: ignore[return-value]


def _name(name: str, value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise OptionError(f"{name} must be text; got {value!r}")
    return value


def _flag(name: str, value: object) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise OptionError(f"{name} must be True or False; got {value!r}")
    return value


def _number(value: float) -> str:
    """As short as it can be; llama.cpp reads it as a 32-bit float, which has no more than 9 digits."""
    return f"{value:.9g}"
