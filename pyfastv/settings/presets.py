"""Named schedules: the rules of papers, and our own default."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .. import _native
from ..errors import OptionError
from .schedule import RECALL, Cut, Schedule, schedule_of

__all__ = [
    "PRESETS",
    "VTW",
    "FastV",
    "Feather",
    "PyramidDrop",
    "Recommended",
    "ZipVL",
    "preset_or_schedule",
    "to_schedule",
]


# as native/settings/schedule.cpp has them
(_RECOMMENDED,) = Schedule.parse("recommended").cuts
(_FASTV,) = Schedule.parse("fastv").cuts
_PYRAMIDDROP = Schedule.parse("pyramiddrop").cuts
_FEATHER, _FEATHER_LATER = Schedule.parse("feather").cuts
_VTW = Schedule.parse("vtw")
(_ZIPVL,) = Schedule.parse("zipvl").cuts


class Recommended(Schedule):
    """Our default: the rule that kept most answers right at equal cost (docs/methods.md has the measurement).

    The tokens of the question vote, each for what it looks at (the highest, not the mean). Those tokens stay that
    together represent the picture best: every patch counts as much as it was voted for, by the most similar one that
    stays (facility location, picked greedily). A patch that nothing else resembles is so kept before the tenth of a kind,
    and the one that stays of a kind counts in attention for all of them.
    """

    def __init__(
        self,
        k: int | str = _RECOMMENDED.layer,
        drop: float = _RECOMMENDED.drop,
        *,
        recall: float = RECALL,
        cells: int | str | None = None,
    ) -> None:
        """``k``, ``drop``: as in FastV. ``recall``, ``cells``: see :class:`pyfastv.Schedule`."""
        super().__init__((replace(_RECOMMENDED, layer=k, drop=drop),), recall, cells)


class FastV(Schedule):
    """Layers from ``k`` on see only the visual tokens that layer ``k - 1`` attends to.

    Chen et al., "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large
    Vision-Language Models", ECCV 2024, arXiv 2403.06764, section 4: visual tokens are ranked by the attention that the
    last prompt token pays them, averaged over the heads, and the share ``drop`` with the lowest is left out. ``score``,
    ``pick``, ``weigh`` and ``merge`` change who ranks, how the tokens are picked, and what becomes of the others; see
    :class:`pyfastv.Cut`.
    """

    def __init__(
        self,
        k: int | str = _FASTV.layer,
        drop: float = _FASTV.drop,
        score: str = _FASTV.score,
        pick: str = _FASTV.pick,
        *,
        weigh: bool = _FASTV.weigh,
        merge: bool = _FASTV.merge,
        recall: float = RECALL,
        cells: int | str | None = None,
    ) -> None:
        """``k``: the paper's K, ``drop``: its R. ``recall``, ``cells``: see :class:`pyfastv.Schedule`."""
        super().__init__((Cut(k, drop, score, pick, weigh, merge),), recall, cells)

    @property
    def k(self) -> int | str:
        """Layers before it see every token. The paper's K."""
        return self.cuts[0].layer

    @property
    def drop(self) -> float:
        """Share of the visual tokens that the later layers do not see. The paper's R."""
        return self.cuts[0].drop

    @property
    def score(self) -> str:
        """What ranks the visual tokens."""
        return self.cuts[0].score

    @property
    def pick(self) -> str:
        """How the tokens to keep are picked."""
        return self.cuts[0].pick


class PyramidDrop(Schedule):
    """Four stages of equally many layers; each sees half of the visual tokens of the one before.

    Xing et al., "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction",
    CVPR 2025, arXiv 2410.17247, with four stages and a ratio of 0.5: LLaVA-1.5-7B's 32 layers are cut at 8, 16 and 24.
    The paper ranks by the last token of the instruction; here it is the last prompt token, which in a chat template
    comes a few tokens later.
    """

    def __init__(self, *, recall: float = RECALL, cells: int | str | None = None) -> None:
        super().__init__(_PYRAMIDDROP, recall, cells)


class Feather(Schedule):
    """An early cut by attention without rotary positions plus a uniform grid, a later one by that attention alone.

    After Endo, Wang and Yeung-Levy, "Feather the Throttle: Revisiting Visual Token Pruning for Vision-Language Model
    Acceleration", ICCV 2025, arXiv 2412.13180: rotary positions make an early layer prefer the lower part of a
    picture, whatever is there. Taken from the paper: the score, the grid, the two cuts. The layers, shares and the stride
    are ours; we have not compared them with the paper's.
    """

    def __init__(
        self,
        k: int | str = _FEATHER.layer,
        drop: float = _FEATHER.drop,
        later_k: int | str = _FEATHER_LATER.layer,
        later_drop: float = _FEATHER_LATER.drop,
        *,
        stride: int = int(_FEATHER.pick.removeprefix("grid")),
        recall: float = RECALL,
        cells: int | str | None = None,
    ) -> None:
        """``k``, ``drop``: the early cut; ``later_k``, ``later_drop``: the later one, its share also of all tokens."""
        early = replace(_FEATHER, layer=k, drop=drop, pick=f"grid{stride}")
        later = replace(_FEATHER_LATER, layer=later_k, drop=later_drop)
        super().__init__((early, later), recall, cells)


class VTW(Schedule):
    """All visual tokens are withdrawn from layer ``k`` on; only the text goes on.

    Lin et al., "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference", AAAI
    2025, arXiv 2405.05803. The paper finds K on a few examples of the task, as the first layer from which on the
    output hardly changes; half of the layers, the default here, is only a place to start.
    """

    def __init__(self, k: int | str | None = None, *, cells: int | str | None = None) -> None:
        cut = _VTW.cuts[0]
        super().__init__((replace(cut, layer=cut.layer if k is None else k),), _VTW.recall, cells)


class ZipVL(Schedule):
    """As few visual tokens as hold the share ``tau`` of the attention: many for a busy question, few for a plain one.

    After He et al., "ZipVL: Efficient Large Vision-Language Models with Dynamic Token Sparsification", arXiv
    2410.08584. Taken from the paper: the adaptive number. The paper chooses in every layer, by the attention of probe
    tokens; this is one cut at ``k``, by the attention of the tokens behind the picture. The defaults are ours.
    """

    def __init__(
        self,
        tau: float = float(_ZIPVL.pick.removeprefix("mass")),
        k: int | str = _ZIPVL.layer,
        most: float = _ZIPVL.drop,
        *,
        recall: float = RECALL,
        cells: int | str | None = None,
    ) -> None:
        """``tau``: share of the attention to hold, in (0, 1]. ``most``: the largest share of tokens that may go."""
        super().__init__((replace(_ZIPVL, layer=k, drop=most, pick=f"mass{tau}"),), recall, cells)


PRESETS: dict[str, Callable[[], Schedule]] = {
    "recommended": Recommended,
    "fastv": FastV,
    "pyramiddrop": PyramidDrop,
    "feather": Feather,
    "vtw": VTW,
    "zipvl": ZipVL,
}
"""By the names that the command line and ``fastv=`` take."""


def to_schedule(value: object) -> Schedule | None:
    """What ``fastv=`` takes: a schedule, text as :meth:`Schedule.parse` takes it; None or "off": no pruning."""
    if value is None or isinstance(value, Schedule):
        return value
    if not isinstance(value, str):
        raise OptionError(
            f"fastv must be a Schedule, text such as 'k=2,drop=0.5', one of {', '.join(PRESETS)}, or None; "
            f"got {value!r}"
        )
    found = _native.parse_schedule(value)
    return None if found is None else preset_or_schedule(found)


def preset_or_schedule(found: dict[str, Any]) -> Schedule:
    """Of what the native module has read: a preset's class, if the text was its name alone."""
    return schedule_of(found) if found["preset"] is None else PRESETS[found["preset"]]()
