"""pyfastv.h, and llama.h on contexts with stages, as a program sees them that knows nothing of pyfastv."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from c_api import ABORTED, BAD_PARAMS, OK, UNSUPPORTED, Context, Model, fastv, llama

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
    contexts = []

    def make(k: int | None = None, drop: float = 0.0, **options: int) -> Context:
        context = Context(model, **options)
        contexts.append(context)
        if k is not None:
            assert context.attach(k, drop) == OK
        return context

    yield make
    for context in contexts:
        context.close()


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


def rms(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(((a - b) ** 2).mean() / (b**2).mean()))


@pytest.mark.parametrize("k", [1, 4, 11])
def test_two_stages_without_drop_are_stock_to_the_bit(make, rows, k):
    stock, staged = make(), make(k, 0.0)
    expected, logits = ask(stock, rows), ask(staged, rows)
    np.testing.assert_array_equal(logits, expected)
    np.testing.assert_array_equal(generate(staged, logits, AT_ANSWER), generate(stock, expected, AT_ANSWER))


def test_drop_changes_the_logits_and_the_cells(make, rows):
    stock, staged = make(), make(2, 0.5)
    assert rms(ask(staged, rows), ask(stock, rows)) > 1e-3
    report = staged.report()
    assert (report.n_visual, report.n_visual_kept, report.n_pending) == (64, 32, 0)
    assert list(report.kv_cells_used) == [AT_ANSWER, AT_ANSWER - 32]
    assert report.kv_cell_bytes[0] * 5 == report.kv_cell_bytes[1]  # 2 layers of 12, and 10


def test_outputs_that_nobody_reads_do_not_make_the_choice(make, rows):
    """llama-cpp-python asks for the logits of the last token of every chunk it evaluates."""
    whole, chunked, hasty = make(2, 0.5), make(2, 0.5), make(2, 0.5)
    expected = ask(whole, rows)
    for context in (chunked, hasty):
        see(context, rows)
        assert context.tokens(QUESTION[:2], AT_QUESTION) == 0
        if context is hasty:
            assert context.logits() is not None
        assert context.tokens(QUESTION[2:4], AT_QUESTION + 2) == 0
        assert context.tokens(QUESTION[4:], AT_QUESTION + 4) == 0
    assert rms(chunked.logits(), expected) < 1e-2  # other row counts round differently, quantized
    assert chunked.kept() == whole.kept()
    assert hasty.kept() != whole.kept()  # else this test could not fail


def test_rows_wait_until_somebody_reads(make, rows):
    context = make(2, 0.5)
    see(context, rows)
    assert context.report().n_pending == N_VISUAL
    assert context.tokens(QUESTION, AT_QUESTION) == 0
    assert context.report().n_pending == N_VISUAL + len(QUESTION)
    assert context.report().kv_cells_used[1] == len(BEFORE)
    context.logits()
    assert context.report().n_pending == 0


def test_flush_does_what_reading_does(make, rows):
    read, flushed = make(2, 0.5), make(2, 0.5)
    expected = ask(read, rows)
    see(flushed, rows)
    assert flushed.tokens(QUESTION, AT_QUESTION) == 0
    assert flushed.flush() == OK
    assert flushed.report().n_pending == 0
    np.testing.assert_array_equal(flushed.logits(), expected)


def test_every_output_of_a_batch_can_be_read(make, rows):
    """Also those of rows before the last, and by their index in the batch."""
    stock, staged = make(), make(2, 0.0)
    for context in (stock, staged):
        see(context, rows)
        batch = context._batch(len(QUESTION), AT_QUESTION, True)
        batch.logits[1] = 1
        token = (llama.llama_token * len(QUESTION))(*QUESTION)
        batch.token = token
        assert llama.llama_decode(context.pointer, batch) == 0
    for index in (1, len(QUESTION) - 1):
        a, b = (
            np.ctypeslib.as_array(llama.llama_get_logits_ith(c.pointer, index), (c.model.n_vocab,))
            for c in (stock, staged)
        )
        np.testing.assert_array_equal(a, b)
    assert not llama.llama_get_logits_ith(staged.pointer, 0)  # not asked for


def test_audio_rows_are_not_pruned(make, rows):
    context, stock = make(2, 0.5), make()
    fastv.pyfastv_set_media(context.pointer, 1)
    np.testing.assert_array_equal(ask(context, rows), ask(stock, rows))
    assert context.report().n_visual == 0


def test_two_pictures_are_each_pruned_by_their_own_share(make, rows):
    context = make(2, 0.75)
    see(context, rows)
    fastv.pyfastv_set_media(context.pointer, 0)  # libmtmd says so for every picture
    assert context.picture(rows, AT_QUESTION) == 0
    assert context.tokens(QUESTION, AT_QUESTION + N_VISUAL) == 0
    context.logits()
    kept = np.array(context.kept())
    assert [(kept < N_VISUAL).sum(), (kept >= N_VISUAL).sum()] == [16, 16]


def test_a_second_question_and_a_second_picture(make, rows):
    """A conversation: without drop, stock to the bit at every turn."""
    stock, staged = make(), make(2, 0.0)
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
    plain, edited = make(2, 0.5), make(2, 0.5)
    expected = ask(plain, rows)
    see(edited, rows)
    assert edited.tokens(QUESTION[::-1], AT_QUESTION) == 0
    assert edited.remove(AT_QUESTION, -1)
    assert edited.report().n_pending == N_VISUAL
    assert edited.tokens(QUESTION, AT_QUESTION) == 0
    np.testing.assert_array_equal(edited.logits(), expected)


def test_positions_removed_and_shifted_as_in_stock(make, rows):
    """A part of the picture goes, the rest moves up."""
    stock, staged = make(), make(3, 0.0)
    outs = []
    for context in (stock, staged):
        ask(context, rows)
        assert context.remove(20, 30)
        context.shift(30, -1, -10)
        assert context.tokens(QUESTION, AT_ANSWER - 10) == 0
        outs.append(context.logits())
    np.testing.assert_array_equal(outs[0], outs[1])


def test_rows_that_wait_are_shifted_with_the_rest(make, rows):
    """RoPE knows distances only: everything moved together gives the same logits, but for rounding."""
    expected = ask(make(2, 0.5), rows)
    context = make(2, 0.5)
    see(context, rows)
    context.shift(0, -1, 7)
    assert context.tokens(QUESTION, AT_QUESTION + 7) == 0
    assert rms(context.logits(), expected) < 1e-2
    assert llama.llama_memory_seq_pos_max(context.memory, 0) == AT_ANSWER + 6


def test_clear_forgets_everything(make, rows):
    context = make(2, 0.5)
    expected = ask(context, rows)
    context.clear()
    see(context, rows[::-1].copy())
    context.clear()
    assert context.report().n_pending == 0
    np.testing.assert_array_equal(ask(context, rows), expected)


def test_positions_are_those_of_the_whole_prompt(make, rows):
    context = make(2, 0.9)
    ask(context, rows)
    assert llama.llama_memory_seq_pos_max(context.memory, 0) == AT_ANSWER - 1


def test_a_state_with_stages_can_be_saved_and_loaded(make, rows):
    context = make(2, 0.5)
    logits = ask(context, rows)
    state = context.save()
    expected = generate(context, logits, AT_ANSWER)
    context.clear()
    assert context.load(state) == len(state)
    np.testing.assert_array_equal(generate(context, logits, AT_ANSWER), expected)


def test_states_of_another_layout_are_refused(make, rows):
    stock, staged, other = make(), make(2, 0.5), make(4, 0.5)
    ask(stock, rows)
    ask(staged, rows)
    assert staged.load(stock.save()) == 0
    assert other.load(staged.save()) == 0
    assert stock.load(staged.save()) == 0


def test_a_state_with_rows_that_wait_is_not_saved(make, rows):
    context = make(2, 0.5)
    see(context, rows)
    assert context.save() == b""
    assert context.tokens(QUESTION, AT_QUESTION) == 0  # and goes on
    assert context.logits() is not None


def test_an_aborted_flush_can_be_repeated(make, rows):
    expected = ask(make(2, 0.5), rows)
    context = make(2, 0.5)
    see(context, rows)
    assert context.tokens(QUESTION, AT_QUESTION) == 0

    stop = llama.ggml_abort_callback(lambda data: True)
    llama.llama_set_abort_callback(context.pointer, stop, None)
    cells = context.report().kv_cells_used[1]
    assert context.flush() == ABORTED
    assert context.logits() is None
    assert context.report().kv_cells_used[1] == cells

    llama.llama_set_abort_callback(context.pointer, llama.ggml_abort_callback(), None)
    np.testing.assert_array_equal(context.logits(), expected)


def test_an_aborted_picture_leaves_nothing(make, rows):
    expected = ask(make(2, 0.5), rows)
    context = make(2, 0.5)
    assert context.tokens(BEFORE, 0, logits=False) == 0
    stop = llama.ggml_abort_callback(lambda data: True)
    llama.llama_set_abort_callback(context.pointer, stop, None)
    assert context.picture(rows, AT_PICTURE) == 2
    assert context.report().n_pending == 0
    llama.llama_set_abort_callback(context.pointer, llama.ggml_abort_callback(), None)
    assert context.picture(rows, AT_PICTURE) == 0
    assert context.tokens(QUESTION, AT_QUESTION) == 0
    np.testing.assert_array_equal(context.logits(), expected)


def test_a_full_context_is_reported_when_decoding(make, model):
    context = make(2, 0.5, n_ctx=256)
    rows = np.random.default_rng(1).normal(size=(250, model.n_embd)).astype(np.float32)
    assert context.picture(rows, 0) == 0
    assert context.tokens(QUESTION, 250) == 0
    assert context.tokens(QUESTION, 256) == 1  # llama.h: no KV slot
    assert context.report().n_pending == 256
    assert context.flush() == OK


@pytest.mark.parametrize(
    ("k", "drop"), [(0, 0.5), (12, 0.5), (-1, 0.5), (2, 1.0), (2, -0.1), (2, float("nan"))]
)
def test_params_out_of_range_name_value_and_limit(make, rows, k, drop):
    context = make()
    expected = ask(context, rows)
    assert context.attach(k, drop) == BAD_PARAMS
    message = fastv.pyfastv_last_error().decode()
    assert (f"k = {k}" in message and "11" in message) or f"drop = {drop:f}" in message
    context.clear()
    np.testing.assert_array_equal(ask(context, rows), expected)


def test_several_sequences_are_refused_and_still_work(make, rows):
    context = make(n_seq_max=2, n_ctx=1024)
    assert context.attach(2, 0.5) == UNSUPPORTED
    assert "n_seq_max = 2" in fastv.pyfastv_last_error().decode()
    assert ask(context, rows) is not None


def test_detached_is_stock_again(make, rows):
    expected = ask(make(), rows)
    context = make(2, 0.5)
    ask(context, rows)
    assert context.detach() == OK
    np.testing.assert_array_equal(ask(context, rows), expected)


def test_attaching_again_changes_k_and_drop(make, rows):
    context = make(2, 0.5)
    ask(context, rows)
    for k, drop, kept in ((2, 0.75, 16), (5, 0.25, 48)):
        assert context.attach(k, drop) == OK
        ask(context, rows)
        assert (context.report().k, len(context.kept())) == (k, kept)
