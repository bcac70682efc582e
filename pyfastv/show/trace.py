"""Ask, and keep what every cut did with the picture's tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..errors import ImageError
from ..inputs.images import Pictures, as_list
from ..settings.schedule import Cut, Schedule
from ..settings.setting import InForce, Setting
from .geometry import Canvas, lay_out

if TYPE_CHECKING:
    from ..engine.runner import Runner
    from ..engine.sampling import SamplingOptions

__all__ = ["RuleTrace", "StageTrace", "Trace", "Turn", "to_setting", "trace"]


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
class RuleTrace(InForce):
    """The conversation under one rule."""

    name: str
    setting: Setting
    turns: tuple[Turn, ...]
    places: NDArray[np.int64]
    """[tokens] the patch, counted over all pictures as in ``canvas.boxes``, where a token stands. One that was merged or
    pooled stands for others, too; without Turbo, reducer and skip every patch has its own."""


@dataclass(frozen=True)
class Trace:
    """What was kept, for every rule."""

    canvas: Canvas
    """With a box for every patch."""
    rules: tuple[RuleTrace, ...]

    @property
    def n_visual(self) -> int:
        """Patches of all pictures: their visual tokens without Turbo and reducer."""
        return len(self.canvas.boxes)


def to_setting(rule: Setting | Schedule | str | None, default: Setting) -> Setting:
    """Text says all; beside a schedule the rest is as in ``default``. Raises OptionError."""
    if isinstance(rule, Setting):
        return rule
    return Setting.parse(rule) if isinstance(rule, str) else default.but(fastv=rule)


def trace(
    runner: Runner,
    pictures: Pictures,
    questions: Sequence[str],
    rules: Mapping[str, Setting | Schedule | str | None],
    sampling: SamplingOptions | None = None,
    *,
    system: str | None = None,
) -> Trace:
    """Ask questions, one conversation for each rule: see :func:`pyfastv.show.render`. The pictures come with the first
    question.

    Raises OptionError, ImageError if there is no picture, and what :meth:`pyfastv.Session.ask` raises."""
    images = runner._model.load_images(as_list(pictures))
    if not images:
        raise ImageError("there is no picture to show: pass at least one")
    settings = {name: to_setting(rule, runner.setting) for name, rule in rules.items()}
    traces, grids = [], []
    for name, setting in settings.items():
        turns: list[Turn] = []
        with runner.session(system=system, **(sampling or {})) as session:
            for number, question in enumerate(questions):
                answer = session.ask(images if number == 0 else None, question, **setting.options())
                with runner._engine_at_work() as engine:
                    before = turns[-1].stages if turns else None
                    turns.append(Turn(question, answer.text, _stages(engine, setting.fastv, before)))
                    seen = engine.pictures()
        grids = [[grid for patches, _ in slices for grid in patches] for slices in seen]
        traces.append(RuleTrace(name, setting, tuple(turns), _places(seen)))
    with runner._engine_at_work() as engine:
        pixels = [engine.pixels(image) for image in images]
    return Trace(lay_out(pixels, grids), tuple(traces))


def _places(
    seen: Sequence[Sequence[tuple[Sequence[tuple[int, int]], NDArray[np.int32]]]],
) -> NDArray[np.int64]:
    places, first = [np.zeros(0, np.int64)], 0
    for patches, of_slice in (part for slices in seen for part in slices):
        places.append(first + of_slice.astype(np.int64))
        first += sum(nx * ny for nx, ny in patches)
    return np.concatenate(places)


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
