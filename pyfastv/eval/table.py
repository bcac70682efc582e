"""The evaluation as tables, for people."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from .bootstrap import Interval
from .evaluation import Evaluation, Result
from .timing import Timing, ratio, spread

__all__ = ["tables"]

_FAMILY_COLUMNS = 8  # settings beside each other


def tables(evaluation: Evaluation) -> Iterator[Table]:
    """One of all settings, and, where questions have families, one or more of the families."""
    yield _settings(evaluation)
    if len(evaluation.family_sizes) > 1:
        for first in range(0, len(evaluation.results), _FAMILY_COLUMNS):
            yield _families(evaluation, first)


def _settings(evaluation: Evaluation) -> Table:
    off = evaluation.results[0].timing
    table = Table(
        title=f"{evaluation.n_questions} questions about {evaluation.n_pictures} pictures, scorer {evaluation.scorer}",
        caption="95 % intervals, bootstrap over pictures; * differs from off.",
    )
    for name in ("", "setting", "score", "interval", "against off", "interval", "retained"):
        table.add_column(name, justify="left" if name == "setting" else "right", no_wrap=name != "setting")
    if off is not None:
        for name in ("first token, ms", "interval", "times faster", "interval"):
            table.add_column(name, justify="right", no_wrap=True)
    for number, result in enumerate(evaluation.results, 1):
        row = [str(number), result.setting, *_percent(result.score), *_difference(result), _share(result)]
        table.add_row(*row, *([] if off is None else _times(off, result.timing)))
    return table


def _families(evaluation: Evaluation, first: int) -> Table:
    shown = evaluation.results[first : first + _FAMILY_COLUMNS]
    table = Table(title="by family, %; columns are settings")
    table.add_column("family")
    table.add_column("questions", justify="right")
    for number, _ in enumerate(shown, first + 1):
        table.add_column(str(number), justify="right")
    for family, size in evaluation.family_sizes.items():
        table.add_row(family, str(size), *(f"{100 * result.families[family]:.1f}" for result in shown))
    return table


def _percent(interval: Interval) -> list[str]:
    return [f"{100 * interval.value:.1f}", f"{100 * interval.low:.1f}-{100 * interval.high:.1f}"]


def _difference(result: Result) -> list[str]:
    if result.difference is None:
        return ["", ""]
    value, low, high = (100 * part for part in result.difference)
    return [f"{value:+.1f}{'*' if result.differs else ' '}", f"{low:+.1f} {high:+.1f}"]


def _share(result: Result) -> str:
    return "" if result.share is None else f"{result.share:.3f}"


def _times(off: Timing, timing: Timing | None) -> list[str]:
    if timing is None:
        return [""] * 4
    time, faster = spread(timing.first_token_ms), ratio(off.first_token_ms, timing.first_token_ms)
    return [
        f"{time.value:.0f}",
        f"{time.low:.0f}-{time.high:.0f}",
        f"{faster.value:.2f}",
        f"{faster.low:.2f}-{faster.high:.2f}",
    ]
