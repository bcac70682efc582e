"""Ask, and keep what every cut did with the picture's tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..errors import ImageError
from ..inputs.images import Frame, Picture, Pictures, as_list
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
    given = as_list(pictures)
    images = runner._model.load_images(given)
    if not images:
        raise ImageError("there is no picture to show: pass at least one")
    asked: list[Picture] = [
        picture if isinstance(picture, Frame) else image for picture, image in zip(given, images, strict=True)
    ]
    settings = {name: to_setting(rule, runner.setting) for name, rule in rules.items()}
    traces, grids = [], []
    for name, setting in settings.items():
        turns: list[Turn] = []
        with runner.session(system=system, **(sampling or {})) as session:
            for number, question in enumerate(questions):
                answer = session.ask(asked if number == 0 else None, question, **setting.options())
                with runner._engine_at_work() as engine:
                    before = turns[-1].stages if turns else None
                    turns.append(Turn(question, answer.text, _stages(engine, setting.fastv, before)))
                    seen = engine.pictures()
        grids = [[grid for patches, _ in slices for grid in patches] for slices in seen]
        traces.append(RuleTrace(name, setting, tuple(turns), _places(seen)))
    model = runner._model
    shown = [model.as_seen(image, model.budget)[0] for image in images]
    with runner._engine_at_work() as engine:
        pixels = [
            _pixels(engine, frames, len(slices), model.budget.enlarge)
            for frames, slices in zip(_by_picture(given, shown), grids, strict=True)
        ]
    return Trace(lay_out(pixels, grids), tuple(traces))


def _by_picture(
    pictures: Sequence[Picture], images: Sequence[NDArray[np.uint8]]
) -> list[list[NDArray[np.uint8]]]:
    """Frames of one video together."""
    found: list[list[NDArray[np.uint8]]] = []
    video = None
    for picture, image in zip(pictures, images, strict=True):
        if isinstance(picture, Frame) and picture.number > 0 and picture.video == video:
            found[-1].append(image)
        else:
            found.append([image])
        video = picture.video if isinstance(picture, Frame) else None
    return found


def _pixels(
    engine: _native.Engine, frames: Sequence[NDArray[np.uint8]], n_slices: int, enlarge: bool
) -> list[NDArray[np.uint8]]:
    """Of a picture's slices; where frames go in pairs, of the first of each."""
    slices = [engine.pixels(frame, enlarge) for frame in frames]
    pairs = [of_frame[0] for of_frame in slices[::2]]
    whole = [pixels for of_frame in slices for pixels in of_frame]
    return pairs if len(whole) != n_slices == len(pairs) else whole


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
