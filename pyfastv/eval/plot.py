"""The Pareto plot: the score against what is retained, and against measured time."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..errors import OptionError
from ..output import Output
from ..settings.presets import PRESETS
from ..settings.schedule import Cut, Schedule
from ..settings.setting import Setting
from .evaluation import Evaluation, Result
from .settings import OFF
from .timing import spread

__all__ = ["check_plot", "pareto", "plot", "series_of", "spread_out"]

# distinguishable with color-blindness, and by shape: Okabe and Ito
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8C6D31", "#4B0082")
_MARKERS = "osD^vP*Xd"
_ONE_COLUMN, _LABEL_STEP = 0.005, 0.035  # shares of a panel's width
_AMOUNTS = {"share", "r", "keep", "drop", "window", "frames", "tau"}


class Point(NamedTuple):
    """One setting in one panel. ``low`` and ``high``: ends of the score's interval."""

    x: float
    y: float
    low: float
    high: float
    rule: str
    label: str


def check_plot(path: str | os.PathLike[str]) -> Any:
    """matplotlib.pyplot's pieces that draw without a screen. Raises OptionError: not installed, or no such format."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise OptionError("a plot needs matplotlib: pip install 'pyfastv[plot]'") from None
    known = FigureCanvasAgg(Figure()).get_supported_filetypes()
    if _format_of(path) not in known:
        raise OptionError(
            f"{os.fsdecode(path)}: a plot's name ends in {', '.join(f'.{name}' for name in known)}"
        )
    return Figure


def plot(evaluation: Evaluation, path: str | os.PathLike[str]) -> None:
    """Write the picture; its format is that of the name. A second panel has the times, if they were measured.

    A line connects the settings that no other one beats at both. Raises OptionError, DataError (cannot be written).
    """
    output = Output(path)
    figure_of = check_plot(path)
    panels = [("retained share of the visual tokens, mean over the layers", _shares(evaluation))]
    if all(result.timing is not None for result in evaluation.results):
        panels.append(("time to first token, ms (median)", _times(evaluation)))
    figure = figure_of(figsize=(8.0 * len(panels), 7.0), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    rules = list(dict.fromkeys(point.rule for point in panels[0][1]))
    for axis, (name, points) in zip(axes, panels, strict=True):
        _draw(axis, points, rules)
        axis.set_xlabel(name)
    axes[0].set_ylabel(f"score, % ({evaluation.scorer}), with 95 % interval")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 * len(panels), frameon=False)
    figure.suptitle(f"{evaluation.n_questions} questions about {evaluation.n_pictures} pictures")
    drawn = io.BytesIO()
    figure.savefig(drawn, format=_format_of(path), dpi=130)
    output.write(drawn.getvalue())


def _format_of(path: str | os.PathLike[str]) -> str:
    return os.path.splitext(os.fsdecode(path))[1].lstrip(".").lower()


def pareto(points: Sequence[Point]) -> list[Point]:
    """Those with a higher score than everything that costs no more, by ascending cost."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, -point.y)):
        if not best or point.y > best[-1].y:
            best.append(point)
    return best


def _draw(axis: Any, points: Sequence[Point], rules: Sequence[str]) -> None:
    for number, rule in enumerate(rules):
        own = [point for point in points if point.rule == rule]
        color = "black" if rule == OFF else _COLORS[number % len(_COLORS)]
        axis.errorbar(
            [point.x for point in own],
            [point.y for point in own],
            [[point.y - point.low for point in own], [point.high - point.y for point in own]],
            # another pair of both when the colors begin again
            fmt=_MARKERS[(number + number // len(_COLORS)) % len(_MARKERS)],
            color=color,
            ecolor=color,
            elinewidth=0.8,
            markersize=8,
            markeredgecolor="white",
            markeredgewidth=0.6,
            label=rule,
        )
    front = pareto(points)
    axis.plot(
        [point.x for point in front],
        [point.y for point in front],
        color="black",
        linewidth=1,
        linestyle="--",
        zorder=1,
        label="nothing beats these at both",
    )
    axis.set_xlim(0, 1.04 * max(point.x for point in points))
    _label(axis, _labeled(points, front))
    axis.grid(axis="y", alpha=0.25)
    low, high = min(point.low for point in points), max(point.high for point in points)
    axis.set_ylim(low - 0.05 * (high - low) - 0.5, high + 0.05 * (high - low) + 0.5)


def _label(axis: Any, points: Sequence[Point]) -> None:
    """What each column of points is, above it; side by side where columns are close, together where they are one."""
    width = axis.get_xlim()[1]
    columns: list[tuple[float, list[str]]] = []
    for point in sorted(points, key=lambda point: point.x):
        x = point.x / width
        if not columns or x - columns[-1][0] > _ONE_COLUMN:
            columns.append((x, []))
        if point.label not in columns[-1][1]:
            columns[-1][1].append(point.label)
    for (x, labels), at in zip(columns, spread_out([x for x, _ in columns], _LABEL_STEP), strict=True):
        axis.axvline(x * width, color="black", alpha=0.15, linewidth=0.8, zorder=0)
        axis.annotate(
            " / ".join(labels),
            (x, 1.0),
            xytext=(at, 1.03),
            xycoords="axes fraction",
            rotation=45,
            rotation_mode="anchor",
            fontsize=8,
            arrowprops={
                "arrowstyle": "-",
                "color": "black",
                "alpha": 0.3,
                "linewidth": 0.8,
                "shrinkA": 0,
                "shrinkB": 0,
            },
        )


def spread_out(places: Sequence[float], step: float) -> list[float]:
    """Ascending places at least ``step`` apart, each group of close ones around its own middle."""
    groups: list[list[float]] = []
    for place in places:
        group = [place]
        while groups and _span(group, step)[0] - _span(groups[-1], step)[1] < step:
            group = groups.pop() + group
        groups.append(group)
    return [_span(group, step)[0] + step * i for group in groups for i in range(len(group))]


def _span(group: Sequence[float], step: float) -> tuple[float, float]:
    half = step * (len(group) - 1) / 2
    middle = sum(group) / len(group)
    return middle - half, middle + half


def _labeled(points: Sequence[Point], front: Sequence[Point]) -> list[Point]:
    """One point of every cut that costs the same with all rules, and of other cuts those that nothing beats."""
    labeled: list[Point] = []
    for label in dict.fromkeys(point.label for point in points if point.label):
        own = [point for point in points if point.label == label]
        same = all(math.isclose(point.x, own[0].x, rel_tol=1e-3) for point in own)
        labeled += own[:1] if same else [point for point in own if point in front]
    return labeled


def _shares(evaluation: Evaluation) -> list[Point]:
    return [_point(result, result.share) for result in evaluation.results if result.share is not None]


def _times(evaluation: Evaluation) -> list[Point]:
    return [
        _point(result, spread(result.timing.first_token_ms).value)
        for result in evaluation.results
        if result.timing is not None
    ]


def _point(result: Result, x: float) -> Point:
    rule, label = series_of(result.setting)
    value, low, high = (100 * part for part in result.score)
    return Point(x, value, low, high, rule, label)


def series_of(setting: str) -> tuple[str, str]:
    """The series that a setting belongs to, and what tells it from the others of the series."""
    parsed = Setting.parse(setting)
    if parsed.is_off:
        return OFF, ""
    before = [
        _split(text)
        for text in (
            "" if parsed.skip is None else f"Skip,{parsed.skip.spec()}",
            "" if parsed.turbo is None else f"Turbo,{parsed.turbo.spec()}",
            "" if parsed.reduce is None else parsed.reduce.spec(),
        )
        if text
    ]
    named = [*before, *([] if parsed.fastv is None else [_named(parsed.fastv)])]
    return " + ".join(rule for rule, _ in named), ", ".join(label for _, label in named if label)


def _split(spec: str) -> tuple[str, str]:
    """A merging or a reducer: its method and its amount."""
    parts = spec.split(",")
    amounts = [part for part in parts if part.partition("=")[0] in _AMOUNTS]
    method = [part for part in parts if part not in amounts and not part.startswith("alpha=")]
    return ", ".join(method), " ".join(amounts).replace("=", " ")


def _named(schedule: Schedule) -> tuple[str, str]:
    preset = next(
        (name for name, make in PRESETS.items() if make() == schedule and len(schedule.cuts) > 1), None
    )
    if preset is not None:
        return preset, ""
    cuts = schedule.cuts
    return "; ".join(dict.fromkeys(_rule(cut) for cut in cuts)), _cuts(schedule)


def _rule(cut: Cut) -> str:
    known = {_rule_text(make().cuts[0]): name for name, make in PRESETS.items() if len(make().cuts) == 1}
    text = _rule_text(cut)
    return f"{known[text]} ({text})" if text in known else text


def _rule_text(cut: Cut) -> str:
    flags = [name for name in ("weigh", "merge") if getattr(cut, name)]
    return ", ".join([cut.score, cut.pick, *flags])


def _cuts(schedule: Schedule) -> str:
    return "; ".join(f"K={cut.layer} drop {cut.drop:g}" for cut in schedule.cuts)
