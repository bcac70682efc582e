"""Layers with sliding windows forget. What programs do about it goes well: they go back to the windows that they saved
(llama-server's checkpoints), and elsewhere are told that there is no way back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

import random_gguf
from c_api import Context, Model, contexts, llama, read
from masked_reference import relative_rms

WINDOW = 16
BEFORE, QUESTION, OTHER = [1, 30, 31, 32], [40, 41, 42, 43, 44, 45], [50, 51, 52]
N = 40  # visual tokens
AT_PICTURE = len(BEFORE)
AT_QUESTION = AT_PICTURE + N
AT_ANSWER = AT_QUESTION + len(QUESTION)
DROP_NOTHING, DROP_HALF = "fastv,k=6,drop=0", "k=6,drop=0.5,score=question-mean,weigh"
NOISE = 1e-3  # relative rms: ggml rounds the input and the output of GELU to float16

Make = Callable[..., Context]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = tmp_path_factory.mktemp("model") / "gemma3.gguf"
    random_gguf.write(path, "gemma3")  # all layers but 5 and 11 see a window
    model = Model(path)
    yield model
    model.close()


@pytest.fixture
def make(model: Model) -> Iterator[Make]:
    exact = {"type_k": llama.GGML_TYPE_F32, "type_v": llama.GGML_TYPE_F32}
    with contexts(model, n_ctx=1024, n_ubatch=64, n_seq_max=2, swa_full=False, **exact) as make:
        yield make


def words(n: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(3, 500, n)]


def ask(context: Context, question: list[int], position: int, seq: int = 0) -> np.ndarray:
    assert context.tokens(question, position, seq=seq) == 0
    return read(context)


def see(context: Context) -> None:
    assert context.tokens(BEFORE, 0, logits=False) == 0
    context.begin_picture("a", 8, 5)
    rows = np.random.default_rng(0).normal(size=(N, random_gguf.WIDTH)).astype(np.float32)
    assert context.picture(rows, AT_PICTURE) == 0


def talk_long(context: Context) -> None:
    """Longer than the 256 cells of the layers with windows."""
    ask(context, words(320), context.last_position() + 1)


# Where a checkpoint is made; what is asked for then goes on behind it.


def of_text(context: Context) -> None:
    ask(context, words(95), 0)


def of_a_picture_that_waits(context: Context) -> None:
    see(context)


def of_a_question_that_waits(context: Context) -> None:
    see(context)
    assert context.tokens(QUESTION[:3], AT_QUESTION) == 0


def behind_the_question(context: Context) -> None:
    see(context)
    ask(context, QUESTION, AT_QUESTION)


def behind_an_answer(context: Context) -> None:
    behind_the_question(context)
    ask(context, words(30, seed=1), AT_ANSWER)


CHECKPOINTS = [
    of_text,
    of_a_picture_that_waits,
    of_a_question_that_waits,
    behind_the_question,
    behind_an_answer,
]


def facts(context: Context) -> tuple[object, ...]:
    return context.report().n_pending, context.kept(), context.last_position()


def go_on(context: Context) -> list[np.ndarray]:
    """Another question than came first, and a token."""
    at = context.last_position() + 1
    assert context.remove(at, -1)
    return [ask(context, OTHER, at), ask(context, [7], at + len(OTHER))]


@pytest.mark.parametrize("spec", [DROP_NOTHING, DROP_HALF])
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_a_context_goes_back_to_its_windows(
    make: Make, checkpoint: Callable[[Context], None], spec: str
) -> None:
    context, fresh = make(spec), make(spec)
    for c in (context, fresh):
        checkpoint(c)
    before = facts(fresh)
    expected = go_on(fresh)

    state = context.save_sequence(0, partial=True)
    for _ in range(2):  # it serves more than once
        talk_long(context)
        assert context.load_sequence(state, 0, partial=True) == len(state)
        assert facts(context) == before
        for logits, of_fresh in zip(go_on(context), expected, strict=True):
            assert relative_rms(logits, of_fresh) < NOISE
        assert context.kept() == fresh.kept()


@pytest.mark.parametrize("partial", [False, True])
def test_later_layers_that_had_seen_nothing_are_empty_again(make: Make, partial: bool) -> None:
    context, fresh = make(DROP_HALF), make(DROP_HALF)
    rows = np.random.default_rng(0).normal(size=(N, random_gguf.WIDTH)).astype(np.float32)
    for c in (context, fresh):
        c.begin_picture("a", 8, 5)
        assert c.picture(rows, 0) == 0
    state = context.save_sequence(0, partial=partial)
    ask(context, OTHER, N)
    ask(context, words(30, seed=1), N + len(OTHER))
    assert context.report().kv_bytes_used[1] > 0
    assert context.load_sequence(state, 0, partial=partial) == len(state)
    assert context.report().kv_bytes_used[1] == 0
    logits, of_fresh = (ask(c, QUESTION, N) for c in (context, fresh))
    assert relative_rms(logits, of_fresh) < NOISE


def test_going_back_without_drop_is_stock_to_the_bit(make: Make) -> None:
    stock, staged = make(), make(DROP_NOTHING)
    results = []
    for context in (stock, staged):
        of_text(context)
        state = context.save_sequence(0, partial=True)
        talk_long(context)
        assert context.load_sequence(state, 0, partial=True) == len(state)
        results.append(go_on(context))
    np.testing.assert_array_equal(results[1], results[0])


def test_a_choice_that_changed_meanwhile_is_gone_back_to(make: Make) -> None:
    """The last row of a checkpoint was removed, and with it the choice that it had made."""
    context, fresh = make(DROP_HALF), make(DROP_HALF)
    for c in (context, fresh):
        behind_the_question(c)
    kept = context.kept()
    state = context.save_sequence(0, partial=True)
    assert context.remove(AT_ANSWER - 1, -1)
    ask(context, [60, 61, 62], AT_ANSWER - 1)
    assert context.kept() != kept
    talk_long(context)
    assert context.load_sequence(state, 0, partial=True) == len(state)
    assert context.kept() == kept
    # as llama-server does, the last row again
    assert context.remove(AT_ANSWER - 1, -1)
    ask(context, QUESTION[-1:], AT_ANSWER - 1)
    assert context.kept() == kept
    for logits, of_fresh in zip(go_on(context), go_on(fresh), strict=True):
        assert relative_rms(logits, of_fresh) < NOISE


# the end of a sequence, where there is no way back


def test_what_would_look_into_a_forgotten_window_is_not_removed(make: Make) -> None:
    context, untouched = make(DROP_NOTHING), make(DROP_NOTHING)
    for c in (context, untouched):
        of_text(c)
        talk_long(c)
    end = context.last_position() + 1
    for begin in (1, 95, end - 300):
        assert not context.remove(begin, -1)
        assert not context.remove(begin, -1, seq=-1)
    assert context.last_position() == end - 1
    np.testing.assert_array_equal(ask(context, OTHER, end), ask(untouched, OTHER, end))
    assert context.remove(end - 10, -1)
    assert context.remove(50, 60)  # nothing goes back to there
    assert context.remove(0, -1)
    assert context.last_position() == -1


def test_a_question_is_not_taken_back_where_its_picture_would_look_into_a_forgotten_window(
    make: Make,
) -> None:
    context = make(DROP_HALF)
    ask(context, words(230, seed=2), 0)
    begin = context.last_position() + 1
    rows = np.random.default_rng(0).normal(size=(N, random_gguf.WIDTH)).astype(np.float32)
    context.begin_picture("a", 8, 5)
    assert context.picture(rows, begin) == 0
    ask(context, QUESTION, begin + N)
    end = context.last_position() + 1
    ask(context, words(235, seed=3), end)
    kept = context.kept()
    assert not context.remove(end - 1, -1)
    assert context.kept() == kept
    assert context.remove(end, -1)  # the question stays


@pytest.mark.parametrize("spec", [DROP_NOTHING, DROP_HALF])
@pytest.mark.parametrize("talk", [behind_an_answer, of_text])
def test_programs_that_look_before_they_remove_are_never_refused(
    make: Make, talk: Callable[[Context], None], spec: str
) -> None:
    """llama-server aborts if seq_rm() fails; whether it may ask, it reads from seq_pos_min()."""
    context = make(spec)
    talk(context)
    for n in (150, 100, 40, 70):
        ask(context, words(n, seed=n), context.last_position() + 1)
        n_removed = 0
        for begin in range(1, context.last_position() + 1):
            looked = context.first_position() < max(0, begin - WINDOW)
            context.copy(0, 1)
            removed = context.remove(begin, -1, seq=1)
            context.remove(-1, -1, seq=1)
            assert removed or not looked
            n_removed += removed
        assert n_removed >= 20


def test_a_window_that_was_not_saved_is_not_looked_into(make: Make) -> None:
    """In a context that forgets nothing itself: a saved sequence has its last windows only."""
    context, other = make(DROP_HALF, swa_full=True), make(DROP_HALF, swa_full=True)
    behind_an_answer(context)
    state = context.save_sequence(0)
    assert other.load_sequence(state, 0) == len(state)
    assert context.remove(AT_ANSWER, -1)
    assert not other.remove(AT_ANSWER, -1)
    assert other.first_position() >= AT_ANSWER  # llama-server takes such a model for one without windows
    at = other.last_position() + 1
    ask(other, OTHER, at)
    assert other.report().n_recalled == 0


def test_the_windows_of_a_sequence_are_no_whole_state(make: Make) -> None:
    context, other = make(DROP_HALF), make(DROP_HALF)
    behind_an_answer(context)
    ask(other, words(20), 0)
    partial, whole = context.save_sequence(0, partial=True), context.save_sequence(0)
    assert len(partial) < len(whole)
    assert other.load_sequence(partial, 0) == 0
    assert other.load_sequence(whole, 0, partial=True) == 0
    assert other.last_position() == 19  # nothing has changed
    # keys and values of the layers that see everything are those of another talk
    assert other.load_sequence(partial, 0, partial=True) == 0
    assert other.last_position() == -1
    assert np.isfinite(ask(other, words(20), 0)).all()
