"""Ask, and keep what every cut did with the picture's tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..errors import ImageError
from ..images import Pictures, as_list
from ..schedule import Cut, Schedule
from .geometry import Canvas, lay_out

if TYPE_CHECKING:
    from ..options import SamplingOptions
    from ..runner import Runner

__all__ = ["RuleTrace", "StageTrace", "Trace", "Turn", "trace"]


@dataclass(frozen=True)
class StageTrace:
    """What a cut did."""

    layer: int
    """The first layer that does not see all: K."""
    cut: Cut
    kept: NDArray[np.bool_]
    """[tokens] True for those that layers from here on see, recalled ones included."""
    recalled: NDArray[np.bool_]
    """[tokens] True for those that this question brought back."""
    scores: NDArray[np.float32]
    """[tokens]; 0 for those that did not reach the cut."""


@dataclass(frozen=True)
class Turn:
    """A question, its answer, and the cuts."""

    question: str
    answer: str
    stages: tuple[StageTrace, ...]


@dataclass(frozen=True)
class RuleTrace:
    """The conversation under one rule."""

    name: str
    schedule: Schedule | None
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Trace:
    """What was kept, for every rule."""

    canvas: Canvas
    rules: tuple[RuleTrace, ...]
    n_visual: int
    """Visual tokens of all pictures."""


def trace(
    runner: Runner,
    pictures: Pictures,
    questions: Sequence[str],
    rules: Mapping[str, Schedule | None],
    sampling: SamplingOptions | None = None,
    *,
    system: str | None = None,
) -> Trace:
    """Ask questions, one conversation for each rule. The pictures come with the first question.

    Raises ImageError if there is no picture, and what :meth:`pyfastv.Session.ask` raises."""
    images = runner._load_images(as_list(pictures))
    if not images:
        raise ImageError("there is no picture to show: pass at least one")
    traces, grids, n_visual = [], None, 0
    for name, schedule in rules.items():
        turns: list[Turn] = []
        with runner.session(system=system, **(sampling or {})) as session:
            for number, question in enumerate(questions):
                answer = session.ask(question, images if number == 0 else None, fastv=schedule)
                with runner._engine_at_work() as engine:
                    before = turns[-1].stages if turns else None
                    turns.append(Turn(question, answer.text, _stages(engine, schedule, before)))
                    grids = engine.grids() or grids
                n_visual = answer.report.visual_tokens
        traces.append(RuleTrace(name, schedule, tuple(turns)))
    with runner._engine_at_work() as engine:
        pixels = [engine.pixels(image) for image in images]
    if grids is None:  # nothing was pruned, so nobody asked where the tokens lie
        grids = [[(1, 1)] * len(slices) for slices in pixels]
    return Trace(lay_out(pixels, grids), tuple(traces), n_visual)


def _stages(
    engine: _native.Engine, schedule: Schedule | None, before: Sequence[StageTrace] | None
) -> tuple[StageTrace, ...]:
    if schedule is None:
        return ()
    first_layers = engine.report().first_layers[1:]
    stages = []
    for number, (layer, cut) in enumerate(zip(first_layers, schedule.cuts, strict=True)):
        scores = engine.scores(number)
        kept = np.zeros(len(scores), np.bool_)
        kept[engine.kept(number)] = True
        recalled = kept & ~before[number].kept if before else np.zeros_like(kept)
        stages.append(StageTrace(layer, cut, kept, recalled, scores))
    return tuple(stages)
