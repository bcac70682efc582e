"""What pruning does to a picture, to look at: which patches stay, and what ranked them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from PIL import Image

from ..engine.sampling import SamplingOptions
from ..errors import OptionError
from ..inputs.images import Pictures
from ..settings.presets import FastV, Recommended
from ..settings.schedule import Schedule
from ..settings.setting import Setting
from .figure import draw
from .fonts import letters_without_font
from .trace import RuleTrace, StageTrace, Trace, Turn, to_setting, trace

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..engine.runner import Runner

__all__ = ["RuleTrace", "StageTrace", "Trace", "Turn", "draw", "letters_without_font", "render", "trace"]

Rules = Sequence["Setting | Schedule | str | None"]


def render(
    runner: Runner,
    pictures: Pictures,
    question: str,
    *,
    rules: Rules | None = None,
    follow_ups: Sequence[str] = (),
    **sampling: Unpack[SamplingOptions],
) -> Image.Image:
    """Ask about a picture or several (a list), and draw what was kept.

    ``rules``: side by side, each a schedule (None: none), or text, which may have the other parts of a setting, too, as
    "turbo:share=0.5 + k=2"; no rules: the runner's own setting. A schedule is shown with the runner's other parts.
    ``follow_ups``: later questions of the same conversation; what each of them recalled is outlined. ``sampling``: see
    :class:`pyfastv.Sampling`.

    The picture is drawn as the vision encoder sees it, resized and padded; patches that layers from a cut on do not see
    are dimmed, those without a token of their own, too; beside it the scores. One row for each cut of each question,
    one group of columns for each rule. RGB.

    Needs the extra "show" (matplotlib). Raises ImageError, OptionError and what :meth:`pyfastv.Session.ask` raises.
    """
    questions = [question, *follow_ups]
    return draw(
        trace(runner, pictures, questions, named(rules or [runner.setting], runner.setting), sampling)
    )


def named(rules: Rules, default: Setting) -> Mapping[str, Setting]:
    """Rules by the names that stand above their columns. ``default``: what is as it is beside a schedule. Raises
    OptionError."""
    names: dict[str, Setting] = {}
    for rule in rules:
        setting = to_setting(rule, default)
        name = _name(rule, setting)
        if name in names:
            raise OptionError(f"the rule {name!r} is given twice")
        names[name] = setting
    return names


def _name(rule: Setting | Schedule | str | None, setting: Setting) -> str:
    parts = [
        None if setting.skip is None else f"Skip {setting.skip}",
        None if setting.turbo is None else f"Turbo {setting.turbo}",
        None if setting.reduce is None else str(setting.reduce),
        None if setting.fastv is None else _schedule_name(rule, setting.fastv),
    ]
    return " + ".join(part for part in parts if part is not None) or "off"


def _schedule_name(rule: Setting | Schedule | str | None, schedule: Schedule) -> str:
    title = "" if type(schedule) is Schedule else type(schedule).__name__
    if len(schedule.cuts) > 1:
        # K and drop stand above every row
        return title or (rule.strip() if isinstance(rule, str) else schedule.spec())
    cut = schedule.cuts[0]
    for known in (FastV, Recommended):
        if schedule.cuts == known(cut.layer, cut.drop).cuts:
            title = known.__name__
    flags = [name for name in ("weigh", "merge") if getattr(cut, name)]
    how = " ".join([cut.score, cut.pick, *flags])
    where = f"K={cut.layer} drop {cut.drop:g}"
    return f"{title + ': ' if title else ''}{how}, {where}"
