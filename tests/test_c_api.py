"""pyfastv.h, and llama.h on contexts with stages, as a program sees them that knows nothing of pyfastv."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pyfastv.bench.lowlevel.bindings import FastvParams

import random_gguf
from c_api import (
    ABORTED,
    BAD_PARAMS,
    OK,
    UNSUPPORTED,
    Context,
    Grid,
    Model,
    Row,
    contexts,
    fastv,
    last_error,
    llama,
    logged,
)
from compare import relative_rms

BEFORE, QUESTION = [1, 300, 301, 302], [400, 410, 420, 430, 440, 450]
N_VISUAL = 64
AT_PICTURE = len(BEFORE)
AT_QUESTION = AT_PICTURE + N_VISUAL
AT_ANSWER = AT_QUESTION + len(QUESTION)


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    model = Model()
    yield model
    model.close()


@pytest.fixture
def make(model: Model) -> Iterator[Callable[..., Context]]:
    with contexts(model) as make:
        yield make


@pytest.fixture
def make_exact(tmp_path: Path) -> Iterator[Callable[..., Context]]:
    """All in f32. Beside quantized weights inputs are rounded to 8 bits, and of a last bit become percents of the logits:
    how many, is the kernels' (0.5 to 1.5 % with those of AVX2, 1.7 % with those of AMX)."""
    random_gguf.write(tmp_path / "llama.gguf", "llama")
    model = Model(tmp_path / "llama.gguf")
    with contexts(model, type_k=llama.GGML_TYPE_F32, type_v=llama.GGML_TYPE_F32) as make:
        yield make
    model.close()


@pytest.fixture(scope="module")
def rows(model: Model) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(N_VISUAL, model.n_embd)).astype(np.float32)


def see(context: Context, rows: np.ndarray) -> None:
    """The text before the picture, and the picture."""
    assert context.tokens(BEFORE, 0, logits=False) == 0
    assert context.picture(rows, AT_PICTURE) == 0


def ask(context: Context, rows: np.ndarray) -> np.ndarray:
    """Logits after picture and question."""
    see(context, rows)
    assert context.tokens(QUESTION, AT_QUESTION) == 0
    logits = context.logits()
    assert logits is not None
    return logits


def generate(context: Context, logits: np.ndarray, position: int, n: int = 6) -> np.ndarray:
    """Logits of n greedy steps after these, [n, n_vocab]."""
    out = []
    for i in range(n):
        assert context.tokens([int(logits.argmax())], position + i) == 0
        logits = context.logits()
        out.append(logits)
    return np.stack(out)


@pytest.mark.parametrize("k", [1, 4, 11])
@pytest.mark.parametrize("rule", ["recommended", "fastv"])
def test_two_stages_without_drop_are_stock_to_the_bit(make, rows, rule, k):
    stock, staged = make(), make(f"{rule},k={k},drop=0")
    expected, logits = ask(stock, rows), ask(staged, rows)
    np.testing.assert_array_equal(logits, expected)
    np.testing.assert_array_equal(generate(staged, logits, AT_ANSWER), generate(stock, expected, AT_ANSWER))


@pytest.mark.parametrize("rule", ["", ",score=last"])
def test_three_stages_without_drop_are_stock_to_the_bit(make, rows, rule):
    stock, staged = make(), make(f"k=2,drop=0{rule};k=7,drop=0{rule}")
    expected, logits = ask(stock, rows), ask(staged, rows)
    np.testing.assert_array_equal(logits, expected)
    np.testing.assert_array_equal(generate(staged, logits, AT_ANSWER), generate(stock, expected, AT_ANSWER))


def cells_of(context: Context) -> list[int]:
    """KV cells in use of each stage: a cell costs as much in every layer of the bundled model, f16 keys and values."""
    report, n_layer = context.report(), context.model.n_layer
    first = [*report.first_layer[: report.n_stages], n_layer]
    n_layers = np.diff(first)
    bytes_of_layer = report.kv_bytes_stock // (n_layer * 1024)
    return (np.array(report.kv_bytes_used[: report.n_stages]) // (n_layers * bytes_of_layer)).tolist()


def test_drop_changes_the_logits_and_the_cells(make, rows):
    stock, staged = make(), make("fastv,k=2,drop=0.5")
    assert relative_rms(ask(staged, rows), ask(stock, rows)) > 1e-3
    report = staged.report()
    assert (report.n_stages, list(report.first_layer[:2])) == (2, [0, 2])
    assert (report.n_visual, report.n_visual_entered[1], report.n_pending) == (64, 32, 0)
    assert cells_of(staged) == [AT_ANSWER, AT_ANSWER - 32]


def test_every_cut_leaves_its_share_of_the_whole_picture(make, rows):
    context = make("k=2,drop=0.25,score=last;k=6,drop=0.5,score=last;k=9,drop=0.75,score=last")
    ask(context, rows)
    report = context.report()
    assert list(report.first_layer[: report.n_stages]) == [0, 2, 6, 9]
    assert list(report.n_visual_entered[: report.n_stages]) == [64, 48, 32, 16]
    assert cells_of(context) == [AT_ANSWER, AT_ANSWER - 16, AT_ANSWER - 32, AT_ANSWER - 48]
    kept = [context.kept(cut) for cut in range(3)]
    assert [len(indices) for indices in kept] == [48, 32, 16]
    assert set(kept[2]) < set(kept[1]) < set(kept[0])


def test_each_cut_keeps_the_highest_of_its_own_scores(make, rows):
    context = make("k=2,drop=0.25,score=last;k=6,drop=0.5,score=last")
    ask(context, rows)
    arriving = np.arange(N_VISUAL)
    for cut, n_kept in ((0, 48), (1, 32)):
        scores = context.scores(cut)
        assert 0 < scores.sum() <= 1
        assert not scores[np.setdiff1d(np.arange(N_VISUAL), arriving)].any()
        assert context.kept(cut) == sorted(sorted(arriving, key=lambda i: (-scores[i], i))[:n_kept])
        arriving = context.kept(cut)


def test_drop_1_leaves_no_visual_token_in_the_later_layers(make, rows):
    context = make("k=2,drop=0.5,score=last;k=6,drop=1,score=last")
    logits = ask(context, rows)
    assert list(context.report().n_visual_entered[:3]) == [64, 32, 0]
    assert context.kept(1) == []
    assert cells_of(context)[2] == AT_ANSWER - N_VISUAL
    assert np.isfinite(generate(context, logits, AT_ANSWER)).all()


@pytest.mark.parametrize(
    ("cells", "drop", "n_cells"), [("auto", 0.75, 512), ("auto", 0.5, 768), ("300", 0.5, 512)]
)
def test_later_stages_can_have_fewer_cells(make, rows, cells, drop, n_cells):
    stock, whole, small = make(), make(f"fastv,k=2,drop={drop}"), make(f"fastv,k=2,drop={drop},cells={cells}")
    outs = [ask(context, rows) for context in (whole, small)]
    np.testing.assert_array_equal(outs[0], outs[1])
    ask(stock, rows)

    plain, report = stock.report(), small.report()
    assert (plain.n_stages, plain.kv_bytes[0], plain.kv_bytes_used[0]) == (
        1,
        plain.kv_bytes_stock,
        plain.kv_bytes_used_stock,
    )
    assert report.kv_bytes_stock == plain.kv_bytes_stock == sum(whole.report().kv_bytes)
    assert report.kv_bytes_used_stock == plain.kv_bytes_used_stock == whole.report().kv_bytes_used_stock
    assert report.kv_bytes[0] == whole.report().kv_bytes[0]
    assert report.kv_bytes[1] * 1024 == whole.report().kv_bytes[1] * n_cells
    assert list(report.kv_bytes_used) == list(whole.report().kv_bytes_used)


def test_cells_that_every_stage_has_are_stock_s(make, rows):
    """More cells than the context has are none to spare."""
    assert sum(make("fastv,k=2,drop=0.1,cells=auto").report().kv_bytes) == make().report().kv_bytes[0]
    assert sum(make("fastv,k=2,drop=0.5,cells=5000").report().kv_bytes) == make().report().kv_bytes[0]


@pytest.mark.parametrize("recall", [0, 0.25])
def test_a_full_later_stage_is_reported_when_decoding(make, model, recall):
    """To the cell; a first question recalls nothing."""
    context = make(f"fastv,k=2,drop=0.5,cells=256,recall={recall}")
    rows = np.random.default_rng(1).normal(size=(512, model.n_embd)).astype(np.float32)
    assert context.tokens(BEFORE, 0, logits=False) == 0
    assert context.picture(rows, AT_PICTURE) == 1  # 4 + 256 cells
    assert context.report().n_pending == 0
    assert context.picture(rows[:440], AT_PICTURE) == 0  # 4 + 220
    assert context.tokens([7] * 33, AT_PICTURE + 440) == 1
    assert context.tokens([7] * 32, AT_PICTURE + 440) == 0
    assert context.logits() is not None
    assert cells_of(context)[1] == 256

    end = AT_PICTURE + 440 + 32
    assert context.tokens([7], end) == 1
    assert context.remove(end - 1, -1)  # that the question loses its end takes the choice back
    assert context.tokens([8], end - 1) == 0
    assert context.logits() is not None
    assert cells_of(context) == [end, 256]


def test_a_stage_that_text_filled_is_reported_when_decoding(make, rows):
    context = make("fastv,k=2,drop=0.5,cells=256,recall=0")
    ask(context, rows)
    n_left = 256 - cells_of(context)[1]
    assert context.tokens([7] * n_left, AT_ANSWER) == 0
    assert context.logits() is not None
    end = AT_ANSWER + n_left
    assert context.tokens([7], end) == 1
    assert context.last_position() == end - 1
    assert context.remove(end - 10, -1)
    assert context.tokens([7] * 10, end - 10) == 0
    assert context.logits() is not None


def test_outputs_that_nobody_reads_do_not_make_the_choice(make, rows):
    """llama-cpp-python asks for the logits of the last token of every chunk it evaluates."""
    whole, chunked, hasty = make("fastv,k=2,drop=0.5"), make("fastv,k=2,drop=0.5"), make("fastv,k=2,drop=0.5")
    expected = ask(whole, rows)
    for context in (chunked, hasty):
        see(context, rows)
        assert context.tokens(QUESTION[:2], AT_QUESTION) == 0
        if context is hasty:
            assert context.logits() is not None
        assert context.tokens(QUESTION[2:4], AT_QUESTION + 2) == 0
        assert context.tokens(QUESTION[4:], AT_QUESTION + 4) == 0
    assert relative_rms(chunked.logits(), expected) < 1e-2  # other row counts round differently, quantized
    assert chunked.kept() == whole.kept()
    assert hasty.kept() != whole.kept()  # else this test could not fail


def test_rows_wait_until_somebody_reads(make, rows):
    context = make("fastv,k=2,drop=0.5")
    see(context, rows)
    assert context.report().n_pending == N_VISUAL
    assert context.tokens(QUESTION, AT_QUESTION) == 0
    assert context.report().n_pending == N_VISUAL + len(QUESTION)
    assert cells_of(context) == [AT_ANSWER, len(BEFORE)]
    context.logits()
    assert context.report().n_pending == 0


def test_flush_does_what_reading_does(make, rows):
    read, flushed = make("fastv,k=2,drop=0.5"), make("fastv,k=2,drop=0.5")
    expected = ask(read, rows)
    see(flushed, rows)
    assert flushed.tokens(QUESTION, AT_QUESTION) == 0
    assert flushed.flush() == OK
    assert flushed.report().n_pending == 0
    np.testing.assert_array_equal(flushed.logits(), expected)


def test_every_output_of_a_batch_can_be_read(make, rows):
    """Also those of rows before the last, and by their index in the batch."""
    stock, staged = make(), make("fastv,k=2,drop=0")
    for context in (stock, staged):
        see(context, rows)
        question = [Row(0, AT_QUESTION + i, token) for i, token in enumerate(QUESTION)]
        assert context.rows(question, logits=[1, 5]) == 0
    for index in (1, 5, -1, -2):
        np.testing.assert_array_equal(staged.logits(index), stock.logits(index))
    assert staged.logits(0) is None  # not asked for


def test_visual_rows_whose_outputs_are_asked_for_are_kept(make, rows):
    stock, exact, context = (
        make(),
        make("fastv,k=2,drop=0"),
        make("k=2,drop=0.5,score=last;k=6,drop=1,score=last"),
    )
    for c in (stock, exact, context):
        assert c.tokens(BEFORE, 0, logits=False) == 0
        assert c.picture(rows, AT_PICTURE, logits=[3, 17]) == 0
        assert c.logits(3) is not None
    for index in (3, 17):
        np.testing.assert_array_equal(exact.logits(index), stock.logits(index))
    assert context.kept(1) == [3, 17]
    assert {3, 17} < set(context.kept(0))
    assert np.isfinite(context.logits(17)).all()


def test_audio_rows_are_not_pruned(make, rows):
    context, stock = make("fastv,k=2,drop=0.5"), make()
    context.begin_audio()
    np.testing.assert_array_equal(ask(context, rows), ask(stock, rows))
    assert context.report().n_visual == 0


@pytest.mark.parametrize("score", ["question-mean", "question-max"])
def test_audio_rows_are_no_part_of_a_question(make, rows, score):
    """A question of one token, then: what it looks at is what the last token looks at."""
    contexts = make(f"k=2,drop=0.5,score={score}"), make("k=2,drop=0.5,score=last")
    for context in contexts:
        see(context, rows)
        context.begin_audio()
        assert context.picture(rows[:5], AT_QUESTION) == 0
        assert context.tokens(QUESTION[:1], AT_QUESTION + 5) == 0
        context.logits()
    np.testing.assert_array_equal(*[context.scores() for context in contexts])


def test_two_pictures_are_each_pruned_by_their_own_share(make, rows):
    context = make("fastv,k=2,drop=0.75")
    see(context, rows)
    context.begin_picture()  # libmtmd says so for every picture
    assert context.picture(rows, AT_QUESTION) == 0
    assert context.tokens(QUESTION, AT_QUESTION + N_VISUAL) == 0
    context.logits()
    kept = np.array(context.kept())
    assert [(kept < N_VISUAL).sum(), (kept >= N_VISUAL).sum()] == [16, 16]


def see_parts(context: Context, rows: np.ndarray, sizes: list[int], begin: list[Callable]) -> None:
    at = 0
    for n, begin_part in zip(sizes, begin, strict=True):
        begin_part(n, 1)
        assert context.picture(rows[at : at + n].copy(), at) == 0
        at += n
    assert context.tokens(QUESTION, at) == 0
    assert context.logits() is not None


def test_slices_of_one_picture_are_counted_together(make, rows):
    """Half of 5 is 2, half to even; half of 10 is 5."""
    for names, is_slice, counts in (
        (["a", "a"], True, (5,)),
        (["", ""], True, (5,)),
        (["a", "b"], True, (2, 2)),
        (["a", "a"], False, (2, 2)),
        (["", ""], False, (2, 2)),
    ):
        context = make("fastv,k=2,drop=0.5")
        see_parts(
            context,
            rows,
            [5, 5],
            [
                partial(context.begin_picture, names[0]),
                partial(context.begin_slice if is_slice else context.begin_picture, names[1]),
            ],
        )
        kept = np.array(context.kept())
        assert len(kept) == sum(counts)
        if len(counts) > 1:
            assert (kept < 5).sum() == counts[0]
        assert context.grids() == [Grid(0, 5, 1), Grid(len(counts) - 1, 5, 1)]


def test_a_picture_may_come_in_several_batches(make, rows):
    """Rows behind each other are more of the same slice: libmtmd says where one begins."""
    context = make("fastv,k=2,drop=0.5")
    context.begin_picture("a", 5, 2)
    assert context.picture(rows[:5], 0) == 0
    assert context.picture(rows[5:10].copy(), 5) == 0
    assert context.tokens(QUESTION, 10) == 0
    context.logits()
    assert (len(context.kept()), context.grids()) == (5, [Grid(0, 5, 2)])


def test_text_may_stand_between_the_slices_of_a_picture(make, rows):
    context = make("fastv,k=2,drop=0.5")
    for begin, start, end in ((context.begin_picture, 0, 5), (context.begin_slice, 7, 12)):
        begin("a")
        assert context.picture(rows[:5], start) == 0
        assert context.tokens([7, 8], end) == 0
    assert context.logits() is not None
    assert len(context.kept()) == 5
    assert context.grids() == [Grid(0, 5, 1), Grid(0, 5, 1)]


def test_a_slice_behind_the_question_is_another_picture(make, rows):
    context = make("fastv,k=2,drop=0.5")
    for begin, start in ((context.begin_picture, 0), (context.begin_slice, 11)):
        begin("a", 5, 1)
        assert context.picture(rows[:5], start) == 0
        assert context.tokens(QUESTION, start + 5) == 0
        assert context.logits() is not None
    assert context.grids() == [Grid(0, 5, 1), Grid(1, 5, 1)]
    assert len([i for i in context.kept() if i >= 5]) == 2


@pytest.mark.parametrize(
    ("nx", "ny", "grid"),
    [
        (8, 8, [Grid(0, 8, 8)]),
        (16, 4, [Grid(0, 16, 4)]),
        (640, 160, [Grid(0, 16, 4)]),  # pixels: the same proportions
        (4, 4, [Grid(0, 4, 4)] * 4),  # frames
        (7, 9, [Grid(0, 64, 1)]),
        (0, 0, [Grid(0, 8, 8)]),  # not known, but a square
        (-8, -4, [Grid(0, 8, 8)]),
        (2**31 - 1, 1, [Grid(0, 64, 1)]),
    ],
)
def test_the_grid_of_a_picture_is_what_it_covers(make, rows, nx, ny, grid):
    context = make("fastv,k=2,drop=0.5")
    context.begin_picture("a", nx, ny)
    assert context.picture(rows, 0) == 0
    assert context.grids() == grid
    assert context.tokens(QUESTION, N_VISUAL) == 0
    assert context.logits() is not None


def test_windows_follow_the_grid(make, rows):
    """Each window keeps its share, wherever the high scores are."""
    context = make("k=2,drop=0.75,pick=window4")
    context.begin_picture("a", 8, 8)
    ask(context, rows)
    y, x = np.divmod(context.kept(), 8)
    assert np.bincount(x // 4 + 2 * (y // 4)).tolist() == [4, 4, 4, 4]


def test_rows_are_archived_as_long_as_they_may_be_needed(make, rows):
    context = make("k=2,drop=0.5,score=last;k=6,drop=0.75,score=last")
    row = 4 * context.model.n_embd
    paid = 4 * N_VISUAL  # by a row that may be the last of the prompt: of the picture, and of the question
    see(context, rows)
    assert context.report().archive_bytes == N_VISUAL * row + paid
    assert context.tokens(QUESTION, AT_QUESTION) == 0
    waited = N_VISUAL + len(QUESTION)
    assert context.report().archive_bytes == waited * row + 2 * paid
    logits = context.logits()
    at_the_second_cut = 32  # as they left layer 6; beside all as they left layer 2
    assert context.report().archive_bytes == (waited + at_the_second_cut) * row + 2 * paid
    generate(context, logits, AT_ANSWER)
    assert context.report().archive_bytes == (waited + at_the_second_cut) * row + 2 * paid
    context.remove(AT_PICTURE, -1)
    assert context.report().archive_bytes == 0


def test_a_token_is_counted_each_time_that_it_is_chosen(make, rows):
    context = make("fastv,k=2,drop=0.5")
    ask(context, rows)
    for _ in range(2):
        assert context.remove(AT_QUESTION, -1)
        assert context.tokens(QUESTION, AT_QUESTION) == 0
        assert context.logits() is not None
    assert (context.report().n_visual, context.report().n_visual_entered[1]) == (64, 3 * 32)


def test_the_report_starts_anew(make, rows):
    context = make("fastv,k=2,drop=0.5")
    ask(context, rows)
    fastv.pyfastv_reset_report(context.pointer)
    report = context.report()
    assert (report.n_visual, report.n_visual_entered[1], report.t_later_ms) == (0, 0, 0)
    assert cells_of(context) == [AT_ANSWER, AT_ANSWER - 32]  # no count, a fact


def test_a_second_question_and_a_second_picture(make, rows):
    """A conversation: without drop, stock to the bit at every turn."""
    stock, staged = make(), make("fastv,k=2,drop=0")
    outs = []
    for context in (stock, staged):
        logits = [ask(context, rows)]
        assert context.tokens(QUESTION[::-1], AT_ANSWER) == 0
        logits.append(context.logits())
        at = AT_ANSWER + len(QUESTION)
        assert context.picture(rows[::-1].copy(), at) == 0
        assert context.tokens(QUESTION, at + N_VISUAL) == 0
        logits.append(context.logits())
        outs.append(np.stack(logits))
    np.testing.assert_array_equal(outs[0], outs[1])


def test_removed_pending_rows_are_as_if_they_had_never_been(make, rows):
    plain, edited = make("fastv,k=2,drop=0.5"), make("fastv,k=2,drop=0.5")
    expected = ask(plain, rows)
    see(edited, rows)
    assert edited.tokens(QUESTION[::-1], AT_QUESTION) == 0
    assert edited.remove(AT_QUESTION, -1)
    assert edited.report().n_pending == N_VISUAL
    assert edited.tokens(QUESTION, AT_QUESTION) == 0
    np.testing.assert_array_equal(edited.logits(), expected)


def test_positions_removed_and_shifted_as_in_stock(make, rows):
    """A part of the picture goes, the rest moves up."""
    stock, staged = make(), make("fastv,k=3,drop=0")
    outs = []
    for context in (stock, staged):
        ask(context, rows)
        assert context.remove(20, 30)
        context.shift(30, -1, -10)
        assert context.tokens(QUESTION, AT_ANSWER - 10) == 0
        outs.append(context.logits())
    np.testing.assert_array_equal(outs[0], outs[1])


def test_rows_that_wait_are_shifted_with_the_rest(make_exact):
    """RoPE knows distances only: everything moved together gives the same logits, but for rounding."""
    rows = np.random.default_rng(0).normal(size=(N_VISUAL, random_gguf.WIDTH)).astype(np.float32)
    expected = ask(make_exact("fastv,k=2,drop=0.5"), rows)
    context = make_exact("fastv,k=2,drop=0.5")
    see(context, rows)
    context.shift(0, -1, 7)
    assert context.tokens(QUESTION, AT_QUESTION + 7) == 0
    assert relative_rms(context.logits(), expected) < 1e-4
    assert context.last_position() == AT_ANSWER + 6


def test_clear_forgets_everything(make, rows):
    context = make("fastv,k=2,drop=0.5")
    expected = ask(context, rows)
    context.clear()
    see(context, rows[::-1].copy())
    context.clear()
    assert context.report().n_pending == 0
    np.testing.assert_array_equal(ask(context, rows), expected)


def test_positions_are_those_of_the_whole_prompt(make, rows):
    context = make("fastv,k=2,drop=1")
    see(context, rows)
    assert context.flush() == OK
    assert (cells_of(context)[1], context.last_position()) == (len(BEFORE), AT_QUESTION - 1)
    assert context.tokens(QUESTION, AT_QUESTION) == 0
    assert context.last_position() == AT_ANSWER - 1


def test_an_aborted_flush_can_be_repeated(make, rows):
    expected = ask(make("fastv,k=2,drop=0.5"), rows)
    context = make("fastv,k=2,drop=0.5")
    see(context, rows)
    assert context.tokens(QUESTION, AT_QUESTION) == 0

    cells = cells_of(context)
    with context.aborting():
        assert context.flush() == ABORTED
        assert context.logits() is None
    assert cells_of(context) == cells

    np.testing.assert_array_equal(context.logits(), expected)


def test_an_aborted_picture_leaves_nothing(make, rows):
    expected = ask(make("fastv,k=2,drop=0.5"), rows)
    context = make("fastv,k=2,drop=0.5")
    assert context.tokens(BEFORE, 0, logits=False) == 0
    with context.aborting():
        assert context.picture(rows, AT_PICTURE) == 2
    assert context.report().n_pending == 0
    assert context.picture(rows, AT_PICTURE) == 0
    assert context.tokens(QUESTION, AT_QUESTION) == 0
    np.testing.assert_array_equal(context.logits(), expected)


def test_a_full_context_is_reported_when_decoding(make, model):
    context = make("fastv,k=2,drop=0.5", n_ctx=256)
    rows = np.random.default_rng(1).normal(size=(250, model.n_embd)).astype(np.float32)
    assert context.picture(rows, 0) == 0
    assert context.tokens(QUESTION, 250) == 0
    assert context.tokens(QUESTION, 256) == 1  # llama.h: no KV slot
    assert context.report().n_pending == 256
    assert context.flush() == OK


def params_of(spec: str) -> FastvParams:
    params = FastvParams()
    assert fastv.pyfastv_parse(spec.encode(), 12, ctypes.byref(params)) == OK
    return params


@pytest.mark.parametrize(
    ("cut", "field", "value", "says"),
    [
        (0, "layer", 0, "k = 0 is out of range"),
        (0, "layer", 12, "12 layers, so 1 <= k <= 11"),
        (0, "layer", -1, "k = -1"),
        (1, "layer", 2, "k = 2 follows k = 2"),
        (0, "drop", 1.01, "drop = 1.01"),
        (0, "drop", -0.1, "0 <= drop <= 1"),
        (0, "drop", float("nan"), "drop = nan"),
        (1, "drop", 0.25, "drop = 0.25"),
        (0, "score", 7, "score = 7"),
        (1, "pick", -1, "pick = -1"),
    ],
)
def test_params_out_of_range_name_value_and_limit(make, rows, cut, field, value, says):
    context = make()
    expected = ask(context, rows)
    params = params_of("k=2,drop=0.5,score=last;k=6,drop=0.75,score=last")
    setattr(params.cuts[cut], field, value)
    assert context.attach_params(params) == BAD_PARAMS
    assert says in last_error()
    context.clear()
    np.testing.assert_array_equal(ask(context, rows), expected)


@pytest.mark.parametrize(
    ("rule", "number", "says"),
    [
        ("pick=window4", 0, "window = 0 is out of range: a whole number, at least 1"),
        ("pick=window4", 2.5, "window = 2.5"),
        ("pick=grid3", 2.0**31, "stride = 2147483648"),
        ("pick=grid3", float("nan"), "stride = nan"),
        ("pick=mass0.5", 0, "mass = 0 is out of range: 0 < mass <= 1"),
        ("pick=mass0.5", 1.01, "mass = 1.01"),
        ("score=random7", -1, "seed = -1 is out of range: a whole number, at least 0"),
        ("score=random7", 2.0**32, "seed = 4294967296"),
    ],
)
def test_a_rule_s_number_out_of_range_names_value_and_limit(make, rule, number, says):
    params = params_of(f"k=2,drop=0.5,{rule}")
    setattr(params.cuts[0], f"{rule.partition('=')[0]}_number", number)
    assert make().attach_params(params) == BAD_PARAMS
    assert says in last_error()


@pytest.mark.parametrize(
    ("field", "value"), [("recall", 1.1), ("recall", float("nan")), ("n_cells", -2), ("n_cuts", 0)]
)
def test_params_of_all_cuts_are_checked_too(make, rows, field, value):
    context = make("fastv,k=2,drop=0.5")
    expected = ask(context, rows)
    params = params_of("fastv,k=3,drop=0.25")
    setattr(params, field, value)
    assert context.attach_params(params) == BAD_PARAMS
    context.clear()
    np.testing.assert_array_equal(ask(context, rows), expected)  # with the stages that it had


def test_detached_is_stock_again(make, rows):
    expected = ask(make(), rows)
    context = make("fastv,k=2,drop=0.5")
    ask(context, rows)
    assert context.detach() == OK
    np.testing.assert_array_equal(ask(context, rows), expected)


@pytest.mark.parametrize(
    ("output", "types", "on", "off"),
    [
        (
            "_Z26llama_set_embeddings_nextnP13llama_contextbb",
            [ctypes.c_bool, ctypes.c_bool],
            (True, False),
            (False, False),
        ),
        (
            "_Z30llama_set_embeddings_layer_inpP13llama_contextjb",
            [ctypes.c_uint32, ctypes.c_bool],
            (1, True),
            (1, False),
        ),
    ],
    ids=["nextn", "layer_inp"],
)
def test_hidden_rows_for_a_draft_model_do_not_come_from_stages(make, rows, output, types, on, off):
    """They would be those of another batch. llama-server asks for them with a draft model; the functions are in no public
    header."""
    context, stock = make(), make()
    assert context.attach("fastv,k=2,drop=0") == OK
    set_output = getattr(fastv, output)
    set_output.argtypes = [ctypes.c_void_p, *types]
    set_output(context.pointer, *on)
    assert context.tokens(BEFORE, 0) == 0  # nothing waits: all layers at once
    with logged() as log:
        assert context.picture(rows, AT_PICTURE) == -1
    assert "hidden rows for a draft model" in "".join(log)
    assert context.detach() == OK
    assert context.attach("fastv,k=2,drop=0") == UNSUPPORTED
    assert "hidden rows for a draft model" in last_error()
    set_output(context.pointer, *off)
    assert context.attach("fastv,k=2,drop=0") == OK
    np.testing.assert_array_equal(ask(context, rows), ask(stock, rows))


def test_attaching_again_changes_the_schedule(make, rows):
    context = make("fastv,k=2,drop=0.5")
    ask(context, rows)
    for spec, layers, kept in (
        ("fastv,k=2,drop=0.75", [0, 2], 16),
        ("fastv,k=5,drop=0.25", [0, 5], 48),
        ("k=5,drop=0.25,score=last;k=8,drop=0.5,score=last", [0, 5, 8], 48),
        ("fastv,k=5,drop=0.5,cells=auto", [0, 5], 32),
    ):
        assert context.attach(spec) == OK
        ask(context, rows)
        report = context.report()
        assert (list(report.first_layer[: report.n_stages]), len(context.kept())) == (layers, kept)
