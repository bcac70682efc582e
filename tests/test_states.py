"""Saved states of contexts with stages: rows that wait and rows that were dropped are in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

import random_gguf
from c_api import Context, Model, contexts, llama, logged, read
from masked_reference import relative_rms

SPEC = "k=1,drop=0.5,score=question-mean;k=3,drop=0.75,score=last,recall=0.125"
WEIGHED = "k=1,drop=0.5,weigh;k=3,drop=0.75,weigh,recall=0.125"
BEFORE, QUESTION, SECOND = [1, 30, 31, 32], [40, 41, 42, 43, 44, 45], [50, 51, 52, 53, 54]
N = 40  # visual tokens
AT_PICTURE = len(BEFORE)
AT_QUESTION = AT_PICTURE + N
AT_ANSWER = AT_QUESTION + len(QUESTION)
EXACT = 1e-5  # relative rms: the same computations, maybe in other cells of the cache
EXACT_CACHE = {"type_k": llama.GGML_TYPE_F32, "type_v": llama.GGML_TYPE_F32}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "llama.gguf"
    random_gguf.write(path, "llama")
    return path


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Model]:
    model = Model(path)
    yield model
    model.close()


@pytest.fixture
def make(model: Model) -> Iterator[Callable[..., Context]]:
    with contexts(model, n_ctx=512, n_seq_max=4, **EXACT_CACHE) as make:
        yield make


def rows_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(N, random_gguf.WIDTH)).astype(np.float32)


def see(context: Context, seq: int = 0, seed: int = 0) -> None:
    assert context.tokens(BEFORE, 0, logits=False, seq=seq) == 0
    context.begin_picture("a", 8, 5)
    assert context.picture(rows_of(seed), AT_PICTURE, seq=seq) == 0


def ask(
    context: Context, question: Sequence[int] = QUESTION, position: int = AT_QUESTION, seq: int = 0
) -> np.ndarray:
    assert context.tokens(question, position, seq=seq) == 0
    return read(context)


def facts(context: Context, seq: int = 0) -> tuple[object, ...]:
    """What a context knows of a sequence's pictures."""
    cuts = range(context.report().n_stages - 1)
    scores = [context.scores(cut, seq=seq).tolist() for cut in cuts]
    return [context.kept(cut, seq=seq) for cut in cuts], scores, context.grids(seq=seq)


def bytes_of(context: Context) -> tuple[object, ...]:
    report = context.report()
    return report.n_pending, report.archive_bytes, list(report.kv_bytes_used)


# Where a talk is interrupted, and how it goes on: what is decoded then ends at a question, whose logits are compared.


def waiting_picture(context: Context, seq: int) -> None:
    see(context, seq)


def waiting_question(context: Context, seq: int) -> None:
    see(context, seq)
    assert context.tokens(QUESTION[:3], AT_QUESTION, seq=seq) == 0


def answered(context: Context, seq: int) -> None:
    see(context, seq)
    ask(context, seq=seq)


def recalled(context: Context, seq: int) -> None:
    answered(context, seq)
    ask(context, SECOND, AT_ANSWER, seq)
    ask(context, [7], AT_ANSWER + len(SECOND), seq)


def second_picture_waits(context: Context, seq: int) -> None:
    answered(context, seq)
    context.begin_picture("b")
    assert context.picture(rows_of(1), AT_ANSWER, seq=seq) == 0


def moved_up(context: Context, seq: int) -> None:
    """A part of the picture is gone."""
    answered(context, seq)
    assert context.remove(AT_PICTURE + 5, AT_PICTURE + 15, seq=seq)
    context.shift(AT_PICTURE + 15, -1, -10, seq=seq)
    ask(context, [7], AT_ANSWER - 10, seq)  # llama.cpp saves keys as they are before a shift was computed


def cut_off(context: Context, seq: int) -> None:
    """A part of the picture is gone, and all behind it: what is left waits again."""
    moved_up(context, seq)
    assert context.remove(AT_PICTURE + 12, -1, seq=seq)


INTERRUPTIONS = [
    waiting_picture,
    waiting_question,
    answered,
    recalled,
    second_picture_waits,
    moved_up,
    cut_off,
]


def go_on(context: Context, seq: int) -> list[np.ndarray]:
    """A question and two tokens; then, with that taken back as far as into it, another question."""
    at = context.last_position(seq=seq) + 1
    out = [ask(context, [60, 61, 62, 63], at, seq)]
    out += [ask(context, [70 + i], at + 4 + i, seq) for i in range(2)]
    assert context.remove(at + 2, -1, seq=seq)
    out.append(ask(context, SECOND, at + 2, seq))
    return out


def assert_goes_on_alike(a: Context, b: Context, seq_a: int = 0, seq_b: int = 0) -> None:
    for logits, expected in zip(go_on(a, seq_a), go_on(b, seq_b), strict=True):
        assert relative_rms(logits, expected) < EXACT
    (kept, scores, grids), (kept_b, scores_b, grids_b) = facts(a, seq_a), facts(b, seq_b)
    assert (kept, grids) == (kept_b, grids_b)
    for of_a, of_b in zip(scores, scores_b, strict=True):
        np.testing.assert_allclose(of_a, of_b, atol=1e-6)


@pytest.mark.parametrize("spec", [SPEC, WEIGHED])
@pytest.mark.parametrize("interrupt", INTERRUPTIONS)
def test_a_whole_state_goes_on_in_a_fresh_context(make, interrupt, spec):
    context, fresh = make(spec), make(spec)
    interrupt(context, 0)
    state = context.save()
    assert fresh.load(state) == len(state)
    assert (facts(fresh), bytes_of(fresh)) == (facts(context), bytes_of(context))
    assert len(fresh.save()) == len(state)
    assert_goes_on_alike(fresh, context)


@pytest.mark.parametrize("interrupt", INTERRUPTIONS)
def test_a_sequence_goes_on_under_another_number(make, interrupt):
    """In a context that holds another picture, which is as it was."""
    context, other, alone = make(SPEC), make(SPEC), make(SPEC)
    interrupt(context, 0)
    for c in (other, alone):
        see(c, seed=5)
        ask(c)
    see(other, 3, seed=6)  # goes
    state = context.save_sequence(0)
    assert other.load_sequence(state, 3) == len(state)
    assert facts(other, 3) == facts(context)
    assert other.report().n_pending == context.report().n_pending
    assert other.last_position(seq=3) == context.last_position()
    assert_goes_on_alike(other, context, 3, 0)
    assert_goes_on_alike(other, alone)


def picture_first(context: Context, seq: int) -> None:
    """The later layers have seen nothing."""
    context.begin_picture("a", 8, 5)
    assert context.picture(rows_of(0), 0, seq=seq) == 0


@pytest.mark.parametrize("interrupt", [picture_first, waiting_question, answered, second_picture_waits])
def test_a_sequence_over_another_leaves_nothing_of_it(make, interrupt):
    context, other = make(SPEC), make(SPEC)
    interrupt(context, 0)
    see(other, seed=5)
    ask(other)
    ask(other, SECOND, AT_ANSWER)
    state = context.save_sequence(0)
    assert other.load_sequence(state, 0) == len(state)
    assert (facts(other), bytes_of(other)) == (facts(context), bytes_of(context))
    assert_goes_on_alike(other, context)


def test_a_state_of_latent_keys_leaves_nothing_of_what_it_replaces(tmp_path):
    random_gguf.write(tmp_path / "deepseek2.gguf", "deepseek2")
    model = Model(tmp_path / "deepseek2.gguf")
    with contexts(model, n_ctx=256, **EXACT_CACHE) as make:
        context, fresh = make("k=1,drop=0.5,score=last"), make("k=1,drop=0.5,score=last")
        for c in (context, fresh):
            picture_first(c, 0)
        state = context.save_sequence(0)
        ask(context, SECOND, N)
        assert context.load_sequence(state, 0) == len(state)
        assert bytes_of(context) == bytes_of(fresh)
        assert relative_rms(ask(context, QUESTION, N), ask(fresh, QUESTION, N)) < EXACT
    model.close()


def test_a_whole_state_has_every_sequence(make):
    """Loaded into a context that holds something else, which goes."""
    context, other = make(SPEC), make(SPEC)
    answered(context, 0)
    waiting_question(context, 2)
    recalled(context, 3)
    see(other, 1, seed=5)
    see(other, 2, seed=6)
    ask(other, seq=2)
    state = context.save()
    assert other.load(state) == len(state)
    assert other.last_position(seq=1) == -1
    assert bytes_of(other) == bytes_of(context)
    for seq in (0, 2, 3):
        assert facts(other, seq) == facts(context, seq)
        assert_goes_on_alike(other, context, seq, seq)


def test_a_saved_sequence_does_not_have_the_others(make):
    context, fresh = make(SPEC), make(SPEC)
    answered(context, 0)
    see(context, 1)
    state = context.save_sequence(0)
    assert fresh.load_sequence(state, 1) == len(state)
    assert (fresh.last_position(seq=0), fresh.report().n_pending) == (-1, 0)


def test_saving_makes_no_choice(make):
    context, other = make(SPEC), make(SPEC)
    for c in (context, other):
        see(c)
        assert c.tokens(QUESTION, AT_QUESTION) == 0
    assert context.save()
    assert context.save_sequence(0)
    assert context.report().n_pending == N + len(QUESTION)
    np.testing.assert_array_equal(read(context), read(other))


def test_outputs_that_were_not_read_are_not_saved(make):
    """They count as not asked for, as after another batch; the rows wait for the next question."""
    context, fresh = make(SPEC), make(SPEC)
    see(context)
    assert context.tokens(QUESTION, AT_QUESTION) == 0
    state = context.save()
    assert fresh.load(state) == len(state)
    assert fresh.logits() is None
    assert fresh.report().n_pending == N + len(QUESTION)
    assert_goes_on_alike(fresh, context)


def test_a_state_of_copies_keeps_them_apart(make):
    context, fresh = make(SPEC), make(SPEC)
    see(context)
    context.copy(0, 1)
    ask(context, QUESTION, seq=0)
    state = context.save()
    assert fresh.load(state) == len(state)
    assert facts(fresh, 0) == facts(context, 0)
    assert fresh.kept(seq=1) == []
    assert_goes_on_alike(fresh, context, 1, 1)
    assert_goes_on_alike(fresh, context, 0, 0)


def test_a_state_may_be_loaded_where_the_later_layers_have_fewer_cells(make):
    context, small, tiny = make(SPEC), make(f"{SPEC},cells=256"), make(f"{SPEC},cells=256")
    answered(context, 0)
    state = context.save()
    assert small.load(state) == len(state)
    assert_goes_on_alike(small, context)
    assert context.tokens([7] * 300, context.last_position() + 1) == 0
    read(context)
    with logged() as log:
        assert tiny.load(context.save()) == 0
    assert "not enough cells" in "".join(log)
    assert np.isfinite(works(tiny)).all()


def works(context: Context) -> np.ndarray:
    """The logits of a talk; nothing that was in the context is left in its way."""
    assert [context.last_position(seq=seq) for seq in range(4)] == [-1] * 4
    report = context.report()
    assert (report.n_pending, report.archive_bytes, sum(report.kv_bytes_used)) == (0, 0, 0)
    see(context)
    return ask(context)


def test_a_state_of_a_stock_context_is_refused(make):
    stock, staged = make(), make(SPEC)
    for c in (stock, staged):
        see(c)
        ask(c)
    with logged() as log:
        assert staged.load(stock.save()) == 0
        assert staged.load_sequence(stock.save_sequence(0), 1) == 0
    assert "this is not the state of a context with stages" in "".join(log)
    assert len(staged.kept()) == N // 2  # and nothing has changed
    assert_goes_on_alike(staged, loaded(make, staged))


def loaded(make: Callable[..., Context], context: Context) -> Context:
    """A fresh context with its state."""
    fresh = make(SPEC)
    state = context.save()
    assert fresh.load(state) == len(state)
    return fresh


def test_a_stock_context_refuses_the_state_of_stages(make):
    stock, plain, staged = make(), make(), make(SPEC)
    answered(staged, 0)
    assert stock.load(staged.save()) == 0
    assert stock.load_sequence(staged.save_sequence(0), 1) == 0
    assert stock.load_sequence(staged.save_sequence(0), 0) == 0
    stock.clear()
    np.testing.assert_array_equal(works(stock), works(plain))


@pytest.mark.parametrize(
    ("spec", "layers"),
    [
        ("k=1,drop=0.5,score=last;k=2,drop=0.75,score=last", "1, 2"),
        ("fastv,k=1,drop=0.5", "1"),
        ("fastv,k=3,drop=0.5", "3"),
    ],
)
def test_a_state_with_other_cuts_is_refused_with_both(make, spec, layers):
    context, other = make(SPEC), make(spec)
    answered(context, 0)
    answered(other, 0)
    before = facts(other)
    with logged() as log:
        assert other.load(context.save()) == 0
        assert other.load_sequence(context.save_sequence(0), 1) == 0
    message = f"this state has its cuts at layers 1, 3, the context at layers {layers}"
    assert "".join(log).count(message) == 2
    assert facts(other) == before  # nothing has changed
    assert np.isfinite(ask(other, SECOND, AT_ANSWER)).all()


def test_a_state_goes_on_by_its_own_rule(make):
    """Where the context has another one."""
    context, other = make(SPEC), make("k=1,drop=0.25,score=last;k=3,drop=0.25,score=last,recall=0")
    see(context)
    state = context.save()
    assert other.load(state) == len(state)
    ask(other)
    ask(context)
    assert facts(other) == facts(context)


def test_a_sequence_that_a_context_cannot_have_is_refused(make):
    context, small = make(SPEC), make(SPEC, n_seq_max=1)
    answered(context, 3)
    assert small.load(context.save()) == 0
    assert np.isfinite(works(small)).all()


def test_a_refused_state_leaves_nothing_half_read(make):
    context, other = make(SPEC), make(SPEC)
    recalled(context, 0)
    waiting_picture(context, 1)
    expected = works(make(SPEC))
    for state in (context.save(), context.save()):
        answered(other, 2)
        assert other.load(state[: len(state) // 2]) == 0
        np.testing.assert_array_equal(works(other), expected)
        other.clear()
        assert other.load(state[:-1]) == 0
        np.testing.assert_array_equal(works(other), expected)
        other.clear()

    answered(other, 0)
    before = facts(other)
    state = context.save_sequence(0)
    assert other.load_sequence(state[:-1], 2) == 0
    assert (facts(other), other.last_position(seq=2), other.kept(seq=2)) == (before, -1, [])
    assert_goes_on_alike(other, loaded(make, other))
