"""``pyfastv show``: patches lie where they belong, and what is dimmed is what was dropped."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pyfastv
from pyfastv import FastV, PyramidDrop, Recommended, Schedule
from pyfastv.commands.main import main
from pyfastv.models import bundled_examples
from pyfastv.settings.schedule import Cut
from pyfastv.settings.setting import Setting
from pyfastv.show import (
    RuleTrace,
    StageTrace,
    Trace,
    Turn,
    draw,
    figure,
    letters_without_font,
    named,
    render,
    terminal,
    trace,
)
from pyfastv.show.geometry import GAP, Canvas, boxes_of_slice, lay_out

import random_mmproj

CLOCK = bundled_examples()[0]


def stage(
    kept: np.ndarray, scores: np.ndarray | None = None, recalled: np.ndarray | None = None
) -> StageTrace:
    n = len(kept)
    scores = np.linspace(0, 1, n, dtype=np.float32) if scores is None else scores
    return StageTrace(2, Cut(2, 0.5), kept, np.zeros(n, bool) if recalled is None else recalled, scores)


# geometry


def test_boxes_are_the_patches_in_raster_order() -> None:
    # 3 patches of 10 pixels beside each other, 2 below each other
    assert boxes_of_slice(30, 20, 3, 2).tolist() == [
        *([0, 0, 10, 10], [10, 0, 20, 10], [20, 0, 30, 10]),
        *([0, 10, 10, 20], [10, 10, 20, 20], [20, 10, 30, 20]),
    ]


@pytest.mark.parametrize(
    ("width", "height", "nx", "ny"), [(336, 336, 24, 24), (97, 55, 7, 5), (224, 168, 8, 6)]
)
def test_boxes_cover_every_pixel_once(width: int, height: int, nx: int, ny: int) -> None:
    covered = np.zeros((height, width), int)
    for x0, y0, x1, y1 in boxes_of_slice(width, height, nx, ny):
        covered[y0:y1, x0:x1] += 1
    assert (covered == 1).all()


def test_a_token_at_the_end_of_a_row_has_no_place() -> None:
    # Pixtral: 8 x 6 patches, a token behind every row but the last
    boxes = boxes_of_slice(224, 168, 8 * 6 + 5, 1)
    ends = [9 * row + 8 for row in range(5)]
    assert [i for i, box in enumerate(boxes) if box[2] == box[0]] == ends
    np.testing.assert_array_equal(np.delete(boxes, ends, 0), boxes_of_slice(224, 168, 8, 6))


def test_resampled_tokens_have_no_places() -> None:
    canvas = lay_out([[np.zeros((112, 112, 3), np.uint8)]], [[(16, 1)]])
    assert canvas.boxes.shape == (16, 4)
    assert not canvas.placed.any()


def test_slices_are_put_together_as_the_overview_shows_them() -> None:
    rng = np.random.default_rng(3)
    whole = np.kron(rng.integers(0, 255, (4, 6, 3)), np.ones((10, 10, 1))).astype(np.uint8)  # 40 x 60
    tiles = [whole[y : y + 20, x : x + 20] for y in (0, 20) for x in (0, 20, 40)]
    overview = np.asarray(Image.fromarray(whole).resize((20, 20), Image.Resampling.BOX))
    for first in (True, False):
        slices = [overview, *tiles] if first else [*tiles, overview]
        canvas = lay_out([slices], [[(2, 2)] * 7])
        at = 20 + GAP if first else 0
        rows = [canvas.pixels[y : y + 20, at : at + 60 + 2] for y in (0, 21)]
        np.testing.assert_array_equal(np.delete(np.concatenate(rows), [20, 41], 1), whole)
        # the first token of the tile in the second row and third column
        tile = 6 if first else 5
        assert canvas.boxes[4 * tile].tolist() == [at + 42, 21, at + 52, 31]


def test_pictures_lie_beside_each_other() -> None:
    pictures = [[np.zeros((20, 30, 3), np.uint8)], [np.zeros((10, 10, 3), np.uint8)]]
    canvas = lay_out(pictures, [[(3, 2)], [(1, 1)]])
    assert canvas.pixels.shape == (20, 30 + GAP + 10, 3)
    assert canvas.boxes[6].tolist() == [30 + GAP, 0, 40 + GAP, 10]


# overlays


@pytest.fixture
def canvas() -> Canvas:
    """6 x 4 patches of 5 pixels, white."""
    return lay_out([[np.full((20, 30, 3), 255, np.uint8)]], [[(6, 4)]])


@pytest.mark.parametrize("drop", [0.0, 0.25, 0.5, 1.0])
def test_the_dimmed_share_is_the_dropped_share(canvas: Canvas, drop: float) -> None:
    kept = np.ones(24, bool)
    kept[np.random.default_rng(0).permutation(24)[: round(24 * drop)]] = False
    dimmed = (figure.dim(canvas, kept) != canvas.pixels).any(-1)
    assert dimmed.mean() == drop
    # and it is those patches
    for (x0, y0, x1, y1), stays in zip(canvas.boxes, kept, strict=True):
        assert (dimmed[y0:y1, x0:x1] != stays).all()


@pytest.mark.parametrize("gray", [0, 60, 130, 255])
def test_dimming_shows_on_dark_and_on_light_pictures(gray: int) -> None:
    canvas = lay_out([[np.full((10, 10, 3), gray, np.uint8)]], [[(1, 1)]])
    changed = figure.dim(canvas, np.array([False])).astype(int)
    assert abs(int(changed.mean()) - gray) > 60


def test_the_heat_map_has_every_score_in_its_place(canvas: Canvas) -> None:
    scores = np.random.default_rng(1).random(24, dtype=np.float32)
    heat = figure.heat_map(canvas, scores)
    assert (heat.min(), heat.max()) == (scores.min(), scores.max())
    highest = canvas.boxes[scores.argmax()]
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    assert (x, y) == (highest[0], highest[1])
    assert (heat == scores.max()).sum() == 25


def test_outlines_are_the_boxes_of_what_was_recalled(canvas: Canvas) -> None:
    recalled = np.zeros(24, bool)
    recalled[[0, 7]] = True
    assert figure.outlines(canvas, recalled).tolist() == [[0, 0, 5, 5], [5, 5, 10, 10]]


def test_recalled_patches_are_outlined_in_the_drawing(canvas: Canvas) -> None:
    def drawn(recalled: np.ndarray) -> int:
        first = Turn("Q", "A", (stage(np.ones(24, bool)),))
        second = Turn("Q2", "A2", (stage(np.ones(24, bool), recalled=recalled),))
        rule = RuleTrace("rule", Setting(FastV(2, 0.5)), (first, second), np.arange(24))
        pixels = np.asarray(draw(Trace(canvas, (rule,))), int)
        color = np.array([int(figure.RECALLED[i : i + 2], 16) for i in (1, 3, 5)])
        return int((np.abs(pixels - color).sum(-1) < 30).sum())

    none, some = np.zeros(24, bool), np.zeros(24, bool)
    some[[3, 9, 15]] = True
    assert drawn(none) == 0
    assert drawn(some) > 100


@pytest.mark.parametrize("text", ["$x_1$ costs 5$?", "日本語 \U0001f600", "a" * 500, ""])
def test_any_text_can_be_drawn(canvas: Canvas, text: str) -> None:
    turns = (Turn(text, text, (stage(np.ones(24, bool)),)),)
    rule = RuleTrace("rule", Setting(FastV(2, 0.5)), turns, np.arange(24))
    assert draw(Trace(canvas, (rule,))).width > 300


@pytest.fixture
def font_of_one_letter(tmp_path: Path) -> Iterator[str]:
    """A letter of a private use area, and the font of this machine that alone has it: a black square."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    from matplotlib import font_manager

    pen = TTGlyphPen(None)
    corners = [(0, 0), (0, 900), (900, 900), (900, 0)]
    pen.moveTo(corners[0])
    for corner in corners[1:]:
        pen.lineTo(corner)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({0xF1A57: "square"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 0)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Only Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "squares.ttf")
    before = list(font_manager.fontManager.ttflist)
    font_manager.fontManager.addfont(tmp_path / "squares.ttf")
    yield "\U000f1a57"
    font_manager.fontManager.ttflist = before


def asked(canvas: Canvas, text: str) -> Trace:
    turns = (Turn(text, text, (stage(np.ones(24, bool)),)),)
    return Trace(canvas, (RuleTrace("rule", Setting(FastV(2, 0.5)), turns, np.arange(24)),))


def test_letters_that_the_default_font_lacks_are_drawn_with_another(
    canvas: Canvas, font_of_one_letter: str
) -> None:
    def ink(text: str) -> int:
        pixels = np.asarray(draw(asked(canvas, text)), int)
        return int((pixels.sum(-1) < 120).sum())

    assert letters_without_font(asked(canvas, font_of_one_letter)) == ""
    assert ink(font_of_one_letter * 9) > ink("\U000f1a58" * 9) + 500


def test_letters_that_no_font_has_are_told(
    canvas: Canvas, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert letters_without_font(asked(canvas, "a é \U000f1a58\U000f1a58 b\ufe0f")) == "\U000f1a58"
    arguments = [str(CLOCK.picture), "What is \U000f1a58?", "-o", str(tmp_path / "a.png"), "-n", "1"]
    assert main(["show", *arguments]) == 0
    assert "no font of this machine has them: \U000f1a58;" in capfd.readouterr().err


def test_no_scores_are_no_heat_map(canvas: Canvas) -> None:
    empty = stage(np.zeros(24, bool), np.zeros(24, np.float32))
    rule = RuleTrace("vtw", Setting(pyfastv.VTW(2)), (Turn("Q", "A", (empty,)),), np.arange(24))
    assert draw(Trace(canvas, (rule,))).height > 100


# with a model


@pytest.mark.parametrize("size", [(100, 200), (200, 100), (336, 336), (50, 60)])
def test_the_encoder_sees_a_padded_square(runner: pyfastv.Runner, size: tuple[int, int]) -> None:
    """LLaVA-1.5 in llama.cpp: fitted into the square, centered, on CLIP's mean color."""
    height, width = size
    picture = np.full((height, width, 3), (200, 30, 90), np.uint8)
    (seen,) = runner._engine.pixels(picture)
    scale = 336 / max(size)
    h, w = round(height * scale), round(width * scale)
    expected = np.full((336, 336, 3), (122, 116, 104), np.uint8)
    top, left = (336 - h) // 2, (336 - w) // 2
    expected[top : top + h, left : left + w] = (200, 30, 90)
    assert seen.shape == (336, 336, 3)
    assert np.abs(seen.astype(int) - expected).max() <= 1


def test_patches_lie_where_the_picture_is(runner: pyfastv.Runner) -> None:
    # one red patch in the seventh row and fourth column of a picture of the encoder's own size
    picture = np.full((336, 336, 3), 255, np.uint8)
    picture[6 * 14 : 7 * 14, 3 * 14 : 4 * 14] = (255, 0, 0)
    made = trace(runner, picture, ["What is it?"], {"fastv": FastV(2, 0.5)}, {"max_tokens": 1})
    x0, y0, x1, y1 = made.canvas.boxes[6 * 24 + 3]
    assert (made.canvas.pixels[y0:y1, x0:x1] == (255, 0, 0)).all()


def test_the_trace_is_what_the_engine_did(runner: pyfastv.Runner) -> None:
    rules = named(["fastv,k=2,drop=0.75", PyramidDrop(), None], Setting())
    made = trace(runner, CLOCK.picture, [CLOCK.question], rules, {"max_tokens": 3})
    first, pyramid, off = made.rules
    (only,) = first.turns[0].stages
    assert (only.layer, only.kept.sum(), made.n_visual) == (2, 144, 576)
    # FastV keeps the highest scores
    assert only.scores[only.kept].min() >= only.scores[~only.kept].max()
    assert [(s.layer, s.kept.sum()) for s in pyramid.turns[0].stages] == [(3, 288), (6, 144), (9, 72)]
    assert off.turns[0].stages == ()
    dimmed = (figure.dim(made.canvas, only.kept) != made.canvas.pixels).any(-1)
    # a patch may have the color that dimming gives; none of the kept ones changes
    assert dimmed.mean() == pytest.approx(0.75, abs=0.01)


def test_turbo_and_a_reducer_are_traced_and_drawn(runner: pyfastv.Runner) -> None:
    """By text for one rule, and the runner's own beside a schedule."""
    rules = {
        "pooled": "reduce:pool,window=2 + fastv,k=2,drop=0.5",
        "merged": "turbo:share=0.25",
        "own": FastV(2, 0.75),
    }
    runner.set_reduce("stride,keep=100")
    try:
        made = trace(runner, CLOCK.picture, [CLOCK.question], rules, {"max_tokens": 1})
        image = draw(made)
    finally:
        runner.set_reduce(None)
    pooled, merged, own = made.rules
    (cut,) = pooled.turns[0].stages
    assert (cut.kept.sum(), len(pooled.places), made.n_visual) == (72, 144, 576)
    # at the center of its window, or before
    assert pooled.places.tolist() == [24 * y + x for y in range(0, 24, 2) for x in range(0, 24, 2)]
    assert (len(merged.places), merged.turns[0].stages) == (432, ())
    assert (own.turns[0].stages[0].kept.sum(), own.turbo, str(own.reduce)) == (25, None, "stride, keep=100")
    assert image.height > 300


def test_a_follow_up_shows_what_recall_brought_back(runner: pyfastv.Runner, picture: dict[str, Path]) -> None:
    rules = {"rule": Schedule.parse("k=6,drop=0.95,score=question-max")}
    questions = ["Describe the image.", "What is written in the picture?"]
    made = trace(runner, picture["scene"], questions, rules, {"max_tokens": 8})
    first, second = (turn.stages[0] for turn in made.rules[0].turns)
    assert not first.recalled.any()
    assert 0 < second.recalled.sum() <= round(0.025 * 576)
    np.testing.assert_array_equal(second.kept, first.kept | second.recalled)
    assert not (first.kept & second.recalled).any()


@pytest.fixture(params=["SmolVLM", "Pixtral", "MiniCPM-V", "Qwen2-VL"])
def other(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[pyfastv.Runner]:
    with pyfastv.Runner(*random_mmproj.write_pair(tmp_path, request.param), n_ctx=512) as runner:
        yield runner


def test_other_encoders_are_drawn(other: pyfastv.Runner) -> None:
    picture = np.random.default_rng(5).integers(0, 256, (168, 224, 3), dtype=np.uint8)
    made = trace(other, picture, ["What is it?"], {"rule": FastV(2, 0.5)}, {"max_tokens": 2})
    (only,) = made.rules[0].turns[0].stages
    assert len(made.canvas.boxes) == len(only.kept) == made.n_visual
    assert draw(made).width > 300


def test_render_is_a_picture(runner: pyfastv.Runner) -> None:
    image = render(runner, CLOCK.picture, CLOCK.question, rules=[FastV(2, 0.5), Recommended(2, 0.75)])
    assert image.mode == "RGB"
    assert image.width > image.height


# the command line


def test_show_writes_a_png_and_says_where(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    arguments = [str(CLOCK.picture), CLOCK.question, "--drop", "0.9", "--follow-up", "Is it digital?"]
    assert main(["show", *arguments, "--max-tokens", "4", "--output", str(out)]) == 0
    with Image.open(out) as image:
        assert image.format == "PNG"
        assert capfd.readouterr().out == f"{out}: {image.width} x {image.height} pixels\n"


def test_without_output_a_file_beside_nothing_is_written(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("clock-kept.png", "clock-kept-2.png"):
        assert main(["show", str(CLOCK.picture), CLOCK.question, "--max-tokens", "1", "--off"]) == 0
        assert (tmp_path / name).is_file()
        assert capfd.readouterr().out.startswith(f"{name}: ")


def test_a_terminal_that_can_gets_it_inline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terminal, "can_show", lambda: True)
    monkeypatch.setattr(terminal, "print_image", printed.append)
    assert main(["show", str(CLOCK.picture), CLOCK.question, "--max-tokens", "1"]) == 0
    (image,) = printed
    assert image.width > 300
    assert not list(tmp_path.iterdir())


def test_stdout_that_is_no_terminal_cannot_show() -> None:
    assert not terminal.can_show()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["missing.png", "What?"], 1, "missing.png: no such file"),
        (
            [str(CLOCK.picture), "What?", "--rules", "fastv,k=2", "--drop", "0.5"],
            2,
            "--rules excludes --drop",
        ),
        (
            [str(CLOCK.picture), "What?", "--rules", "fastv,k=2", "--turbo", "r=1"],
            2,
            "--rules excludes --turbo",
        ),
        (
            [str(CLOCK.picture), "What?", "--rules", "fastv,k=2", "--profile", "p.json"],
            2,
            "--rules excludes --profile",
        ),
        ([str(CLOCK.picture), "What?", "--rules", "vtw", "--rules", "vtw"], 1, "given twice"),
        ([str(CLOCK.picture), "What?", "--rules", "nonsense"], 1, "nonsense"),
        ([str(CLOCK.picture), "What?", "--rules", "fastv,k=12,drop=0.5"], 1, "12"),
        ([str(CLOCK.picture), "What?", "--output", "out.gif"], 1, ".png"),
        ([str(CLOCK.picture), "What?", "--output", "missing/out.png"], 1, "no folder"),
        ([str(CLOCK.picture)], 2, ""),
    ],
)
def test_bad_input_is_told(
    arguments: list[str],
    status: int,
    words: str,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["show", *arguments]) == status
    assert words in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_extra_is_named(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else find(name, *rest)
    )
    assert main(["show", str(CLOCK.picture), "What?", "--output", str(tmp_path / "a.png")]) == 1
    assert "pip install 'pyfastv[show]'" in capfd.readouterr().err


def test_no_picture_is_refused(runner: pyfastv.Runner) -> None:
    with pytest.raises(pyfastv.ImageError, match="no picture"):
        render(runner, [], "What?")
