"""The parts of the time to first token of each setting, as stacked bars."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import Error, printable
from ..output import Output
from .ratios import Ratio
from .summary import PARTS, Row

__all__ = ["save_plot"]

# Okabe and Ito's colors, which color-blind people can tell apart
_COLORS = {
    "picture_ms": "#999999",
    "encoder_ms": "#E69F00",
    "reduce_ms": "#CC79A7",
    "full_ms": "#0072B2",
    "stage0_ms": "#56B4E9",
    "choose_ms": "#D55E00",
    "later_ms": "#009E73",
    "other_ms": "#CCCCCC",
}


def save_plot(path: Path, rows: Sequence[Row], title: str, base: str) -> None:
    """Write a picture; its format is the file's ending. ``base``: whose ratios stand beside the bars.

    Raises Error (no matplotlib, or no such format), DataError (the file cannot be written).
    """
    output = Output(path)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Error(f"plots need matplotlib ({error}): pip install pyfastv[bench]") from error

    scale, unit = (
        (1000.0, "s") if max(row.times["first_token_ms"].median for row in rows) >= 2000 else (1.0, "ms")
    )
    parts = [name for name in PARTS if any(row.times[name].median >= 0.05 for row in rows)]
    figure = Figure(figsize=(9, 1.6 + 0.55 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = list(range(len(rows)))
    left = [0.0] * len(rows)
    for name in parts:
        widths = [row.times[name].median / scale for row in rows]
        axes.barh(places, widths, left=left, color=_COLORS[name], label=PARTS[name], height=0.7)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    whole = [row.times["first_token_ms"] for row in rows]
    # from the lowest to the highest, around the median
    spread = [
        [max(0.0, s.median - s.low) / scale for s in whole],
        [max(0.0, s.high - s.median) / scale for s in whole],
    ]
    medians = [s.median / scale for s in whole]
    axes.errorbar(medians, places, xerr=spread, fmt="none", ecolor="black", elinewidth=1, capsize=3)
    digits = 2 if unit == "s" else 0
    for place, row, spread_of in zip(places, rows, whole, strict=True):
        text = f"{spread_of.median / scale:.{digits}f} {unit}"
        if base in row.ratios:
            text += f", {_ratio(row.ratios[base].get('first_token'), base)}"
        axes.annotate(
            text,
            (max(spread_of.high / scale, left[place]), place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_yticks(places, [_folded(row.name) for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, max(max(s.high / scale for s in whole), *left) * 1.5)
    axes.set_xlabel(f"time to first token, {unit}: medians; lines from the lowest to the highest")
    figure.suptitle(printable(title), x=0.01, ha="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(parts), frameon=False, fontsize=9)
    drawn = io.BytesIO()
    try:
        figure.savefig(drawn, format=path.suffix[1:].lower(), dpi=150)
    except ValueError as error:
        raise Error(f"the plot cannot be written to {path}: {error}") from error
    output.write(drawn.getvalue())


def _folded(name: str, width: int = 30) -> str:
    """In lines, broken behind a comma, a semicolon or a plus."""
    lines = [""]
    for piece in re.findall(r"[^,;+]+[,;+]?\s*", name):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def _ratio(ratio: Ratio | None, base: str) -> str:
    if ratio is None:
        return ""
    if not ratio.is_difference:
        return ratio.verdict
    return f"{ratio.median:.2f} times as fast as {base}"
