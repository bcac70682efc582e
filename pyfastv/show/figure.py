"""A picture of what was kept: dropped patches dimmed, scores as a heat map, rule by rule and stage by stage."""

from __future__ import annotations

import io
import textwrap
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import Error
from .fonts import families
from .geometry import Canvas
from .trace import RuleTrace, StageTrace, Trace, Turn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["dim", "draw", "heat_map", "outlines"]

# Okabe and Ito's vermillion, told apart from the grays of a dimmed picture by any eye
RECALLED = "#D55E00"
# with a hue of their own, so that black is told from dimmed black, and white from dimmed white
DARK, LIGHT = np.array([52, 62, 98.0]), np.array([206, 214, 236.0])
STRENGTH = 0.78

_PANEL = 3.0  # inches, of the longer side
_DPI = 110
_MAP = "viridis"
_NOTHING = "#e4e4e4"  # where there is no score


def dim(canvas: Canvas, kept: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The picture, [height, width, 3], with the patches of tokens that are not kept dimmed: grayed, and drawn toward
    a dark color, or toward a light one if the picture is dark."""
    pixels = canvas.pixels.astype(np.float64)
    gray = pixels @ np.array([0.299, 0.587, 0.114])
    # whichever is farther from the picture
    paper = DARK if np.median(gray) > (DARK.mean() + LIGHT.mean()) / 2 else LIGHT
    dimmed = (1 - STRENGTH) * gray[..., None] + STRENGTH * paper
    dropped = canvas.spread(~kept, 0.0)[..., None].astype(bool)
    return np.rint(np.where(dropped, dimmed, pixels)).astype(np.uint8)


def heat_map(canvas: Canvas, scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """[height, width]: the score of the token that lies at a pixel; NaN where none does."""
    return canvas.spread(scores, np.nan)


def outlines(canvas: Canvas, recalled: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[n, 4] boxes, x0, y0, x1, y1, of the recalled tokens that have a place."""
    return canvas.boxes[recalled & canvas.placed]


def draw(trace: Trace) -> Image.Image:
    """Letters that no font of this machine has are boxes. Raises Error without matplotlib (the extra "show")."""
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise Error("drawing needs matplotlib: pip install 'pyfastv[show]'") from error
    with rc_context({"font.family": families(trace)}):
        return _to_image(_figure(trace))


def _figure(trace: Trace) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    turns = len(trace.rules[0].turns)
    rows_of_turn = [max(1, *[len(rule.turns[turn].stages) for rule in trace.rules]) for turn in range(turns)]
    n_rows = sum(rows_of_turn)
    group_widths = [1 if rule.fastv is None else 2 for rule in trace.rules]
    n_columns = 1 + sum(group_widths)

    height, width = trace.canvas.pixels.shape[:2]
    scale = _PANEL / max(height, width)
    panel_w, panel_h = max(width * scale, 2.4), max(height * scale, 1.2)
    size = (n_columns * (panel_w + 0.55) + 0.3, n_rows * (panel_h + 1.0) + 0.75)
    figure = Figure(
        figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.1, wspace=0.01, hspace=0.02)
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    row = 0
    for turn, n_stages in enumerate(rows_of_turn):
        _draw_seen(axes[row][0], trace, turn)
        column = 1
        for rule, group_width in zip(trace.rules, group_widths, strict=True):
            for stage in range(n_stages):
                _draw_stage(
                    figure, axes[row + stage][column : column + group_width], trace, rule, turn, stage
                )
            column += group_width
        row += n_stages
    _draw_title(figure, trace)
    return figure


def _draw_seen(axis: Axes, trace: Trace, turn: int) -> None:
    """The first column: the picture in the first row, then only which question a row is about."""
    question = _wrapped(f"{_ordinal(turn)} question: {trace.rules[0].turns[turn].question}", 34)
    if turn == 0:
        axis.imshow(trace.canvas.pixels)
        question = f"as the vision encoder sees it:\n{trace.n_visual} {'patches' if _fewer(trace) else 'visual tokens'}"
        axis.set_title(question, fontsize=9, parse_math=False)
    else:
        axis.text(0.5, 0.5, question, ha="center", va="center", fontsize=10, wrap=True, parse_math=False)


def _draw_stage(figure: Figure, axes: Any, trace: Trace, rule: RuleTrace, turn: int, number: int) -> None:
    made = rule.turns[turn]
    n_tokens = len(rule.places)
    if rule.fastv is None:
        if number == 0:
            axes[0].imshow(dim(trace.canvas, _at(rule, trace, np.ones(n_tokens, np.bool_), False)))
            _title(axes[0], rule, made, f"no pruning: all {n_tokens} kept{_of_patches(rule, trace)}")
        return
    if number >= len(made.stages):
        return
    stage = made.stages[number]
    text = _kept(stage, len(made.stages) > 1, _of_patches(rule, trace))
    reached = made.stages[number - 1].kept if number else np.ones_like(stage.kept)
    reached, stage = _at(rule, trace, reached, False), _of_patch(rule, trace, stage)
    axes[0].imshow(dim(trace.canvas, stage.kept))
    _outline(axes[0], trace.canvas, stage)
    _title(axes[0], rule if number == 0 else None, made, text)
    _draw_scores(figure, axes[1], trace.canvas, stage, reached)


def _at(rule: RuleTrace, trace: Trace, values: NDArray[Any], elsewhere: Any) -> NDArray[Any]:
    """[patches] the values of the tokens that stand there."""
    made = np.full(trace.n_visual, elsewhere, values.dtype)
    made[rule.places] = values
    return made


def _of_patch(rule: RuleTrace, trace: Trace, stage: StageTrace) -> StageTrace:
    """As of a stage in which every patch has a token: those that have none were not kept."""
    return replace(
        stage,
        kept=_at(rule, trace, stage.kept, False),
        recalled=_at(rule, trace, stage.recalled, False),
        scores=_at(rule, trace, stage.scores, 0.0),
    )


def _fewer(trace: Trace) -> bool:
    return any(len(rule.places) < trace.n_visual for rule in trace.rules)


def _of_patches(rule: RuleTrace, trace: Trace) -> str:
    return f", for {trace.n_visual} patches" if len(rule.places) < trace.n_visual else ""


def _draw_scores(
    figure: Figure, axis: Axes, canvas: Canvas, stage: StageTrace, reached: NDArray[np.bool_]
) -> None:
    """``reached``: [tokens] True for those that an earlier cut left."""
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm

    scores = stage.scores[reached]
    if stage.cut.score == "none" or not len(scores) or scores.max() <= scores.min():
        axis.text(0.5, 0.5, "no score:\nnothing ranks the patches", ha="center", va="center", fontsize=9)
        return
    if not canvas.placed.any():
        axis.text(0.5, 0.5, "the tokens of this model\nhave no places", ha="center", va="center", fontsize=9)
        return
    # attention is a few high peaks: on a linear scale all else would be one color
    norm = PowerNorm(0.5, vmin=float(scores.min()), vmax=float(scores.max()))
    heat = heat_map(canvas, np.where(reached, stage.scores, np.nan))
    colors = colormaps[_MAP].with_extremes(bad=_NOTHING)
    image = axis.imshow(heat, norm=norm, cmap=colors, interpolation="nearest")
    _outline(axis, canvas, stage)
    bar = figure.colorbar(image, ax=axis, shrink=0.8, pad=0.02)
    bar.ax.tick_params(labelsize=7)
    bar.set_ticks([scores.min(), (scores.min() + scores.max()) / 4, scores.max()])
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
    axis.set_title(f"score: {_score_name(stage.cut.score)}", fontsize=9, parse_math=False)


def _outline(axis: Axes, canvas: Canvas, stage: StageTrace) -> None:
    from matplotlib.patches import Rectangle

    for x0, y0, x1, y1 in outlines(canvas, stage.recalled):
        # pixel centers have whole coordinates
        corner = (x0 - 0.5, y0 - 0.5)
        axis.add_patch(Rectangle(corner, x1 - x0, y1 - y0, fill=False, edgecolor=RECALLED, linewidth=1.6))


def _title(axis: Axes, rule: RuleTrace | None, turn: Turn, text: str) -> None:
    """What was kept; above the first stage of a rule, which rule it is and what it answered."""
    lines = [text]
    if rule is not None:
        lines = [
            _wrapped(rule.name, 40),
            _wrapped(f"A: {turn.answer.strip() or '(empty)'}", 44, 3),
            text,
        ]
    axis.set_title("\n".join(lines), fontsize=9, parse_math=False, loc="left")


def _kept(stage: StageTrace, several: bool, of_patches: str) -> str:
    n, all_ = int(stage.kept.sum()), len(stage.kept)
    recalled = int(stage.recalled.sum())
    text = f"kept {n} of {all_}{of_patches}"
    if several:
        text = f"from layer {stage.layer}, drop {stage.cut.drop:g}: {text}"
    return f"{text}\n{recalled} of them recalled (outlined)" if recalled else text


def _score_name(score: str) -> str:
    names = {
        "last": "attention of the last token",
        "last-no-rope": "the last token's, no positions",
        "question-max": "attention of the question (max)",
        "question-mean": "attention of the question (mean)",
        "all": "attention of all tokens",
    }
    return names.get(score, score)


def _draw_title(figure: Figure, trace: Trace) -> None:
    pruned = any(rule.fastv is not None for rule in trace.rules)
    notes = "layers from K on do not see the dimmed patches" if pruned else "every layer sees every patch"
    if _fewer(trace):
        notes = (
            "dimmed: no token of its own, merged or left out before the language model, or not seen from K on"
        )
    figure.suptitle(
        f"{_wrapped('Q: ' + trace.rules[0].turns[0].question, 100)}\n{notes}", fontsize=11, parse_math=False
    )


def _ordinal(number: int) -> str:
    return {1: "second", 2: "third"}.get(number, f"{number + 1}th")


def _wrapped(text: str, width: int, lines: int = 4) -> str:
    return "\n".join(textwrap.wrap(" ".join(text.split()), width, max_lines=lines, placeholder=" ...")) or " "


def _to_image(figure: Figure) -> Image.Image:
    file = io.BytesIO()
    with warnings.catch_warnings():
        # of letters that no font has: fonts.letters_without_font() tells them
        warnings.filterwarnings("ignore", message="Glyph ")
        figure.savefig(file, format="png", dpi=_DPI, facecolor="white")
    file.seek(0)
    image = Image.open(file)
    image.load()
    return image.convert("RGB")
