"""A conversation about pictures: later questions bring dropped tokens back, and what a question did can be taken back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

import random_gguf
from c_api import ABORTED, OK, Context, Model, Row, contexts, llama, read
from masked_reference import Reference, picture, relative_rms, text

N_LAYER = random_gguf.n_layer("llama")
BEFORE, QUESTION, SECOND = [1, 30, 31, 32], [40, 41, 42, 43, 44, 45], [50, 51, 52, 53, 54]
N = 64  # visual tokens
AT_PICTURE = len(BEFORE)
AT_QUESTION = AT_PICTURE + N
AT_ANSWER = AT_QUESTION + len(QUESTION)
EXACT = 1e-5  # relative rms: the same computations, maybe in other cells of the cache

ONE = "fastv,k=1,drop=0.5,recall=0.0625"
TWO = "k=1,drop=0.5,score=question-mean;k=3,drop=0.75,score=last,recall=0.125"
MERGED = "k=1,drop=0.5,merge;k=2,drop=0.625,score=last,recall=0.25"
WEIGHED = "k=1,drop=0.5,weigh;k=3,drop=0.75,weigh,recall=0.125"
SPECS = [ONE, TWO, MERGED, WEIGHED]


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
    with contexts(model, type_k=llama.GGML_TYPE_F32, type_v=llama.GGML_TYPE_F32) as make:
        yield make


def rows_of(seed: int, n: int = N) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, random_gguf.WIDTH)).astype(np.float32)


PICTURE = rows_of(0)


def see(context: Context, rows: np.ndarray = PICTURE) -> None:
    assert context.tokens(BEFORE, 0, logits=False) == 0
    context.begin_picture()
    assert context.picture(rows, AT_PICTURE) == 0


def ask(context: Context, question: Sequence[int] = QUESTION, position: int = AT_QUESTION) -> np.ndarray:
    assert context.tokens(question, position) == 0
    return read(context)


def answer(context: Context, logits: np.ndarray, position: int, n: int = 4) -> np.ndarray:
    """Logits behind n greedy tokens."""
    for i in range(n):
        logits = ask(context, [int(logits.argmax())], position + i)
    return logits


def asked(make: Callable[..., Context], spec: str, question: Sequence[int] = QUESTION) -> Context:
    context = make(spec)
    see(context)
    ask(context, question)
    return context


def kept(context: Context) -> list[list[int]]:
    return [context.kept(cut) for cut in range(context.report().n_stages - 1)]


def used(context: Context) -> list[int]:
    report = context.report()
    return list(report.kv_bytes_used[: report.n_stages])


@pytest.mark.parametrize(
    ("recall", "budget"),
    [(0.0625, 4), (0.1, 6), (2.5 / N, 2), (3.5 / N, 4), (0.25, 16), (1.0, N)],  # half to even
)
def test_a_second_question_brings_back_the_highest_of_those_it_would_have_chosen(make, recall, budget):
    context = asked(make, f"fastv,k=1,drop=0.5,recall={recall}")
    first = context.kept()
    ask(context, SECOND, AT_ANSWER)
    scores = context.scores()
    order = sorted(range(N), key=lambda i: (-scores[i], i))
    wanted = [i for i in order[: N // 2] if i not in first]
    assert len(wanted) > 6  # else the budgets would not show
    assert context.kept() == sorted([*first, *wanted[:budget]])
    assert context.report().n_recalled == min(budget, len(wanted))
    assert context.report().n_visual_entered[1] == N // 2  # recalled ones not counted


def test_every_cut_has_a_budget(make):
    context = asked(make, TWO)
    first = kept(context)
    ask(context, SECOND, AT_ANSWER)
    second = kept(context)
    for cut in range(2):
        assert set(first[cut]) < set(second[cut])
    assert set(second[1]) < set(second[0])
    back = set(second[0]) - set(first[0])
    assert len(back) == 8
    # behind the second cut: 8 of those that waited there, and what has just come back at the first
    further = set(second[1]) - set(first[1])
    assert len(further - back) <= 8
    assert context.report().n_recalled == len(back) + len(further - back)


def visible_rows(kept_by_turn: list[list[int]], ends: list[int]) -> np.ndarray:
    """bool [n, n]: whether a row (first index) sees another in the later layers; turns of text end at `ends`.

    Rows of a turn see what has been kept up to then. A visual row runs in the turn that kept it.
    """
    n = ends[-1]
    visible = np.ones((n, n), bool)
    start = 0
    ran: set[int] = set()
    for indices, end in zip(kept_by_turn, ends, strict=True):
        hidden = AT_PICTURE + np.setdiff1d(np.arange(N), indices)
        turn = [row for row in range(start, end) if not AT_PICTURE <= row < AT_QUESTION]
        turn += [AT_PICTURE + i for i in set(indices) - ran]
        visible[np.ix_(turn, hidden)] = False
        ran |= set(indices)
        start = end
    return visible


@pytest.mark.parametrize("recall", [0, 0.0625, 0.5])
def test_a_conversation_is_the_reference_s(make, path, recall):
    """NumPy, whose later layers do not see what is dropped. Rows that come back see what is there by then."""
    context = asked(make, f"fastv,k=2,drop=0.75,recall={recall}")
    turns = [context.kept()]
    end = AT_ANSWER + len(SECOND)
    ask(context, SECOND, AT_ANSWER)
    turns.append(context.kept())
    third = [60, 61, 62]
    logits = ask(context, third, end)
    turns.append(context.kept())

    ends = [AT_ANSWER, end, end + len(third)]
    visible = np.ones((N_LAYER, ends[-1], ends[-1]), bool)
    visible[2:] = visible_rows(turns, ends)
    prompt = [text(BEFORE, 0), picture(PICTURE, AT_PICTURE), text([*QUESTION, *SECOND, *third], AT_QUESTION)]
    result = Reference(path).run(prompt, visible)
    assert relative_rms(logits, result.logits) < 1e-4
    if recall:
        assert len(turns[0]) < len(turns[1]) < len(turns[2])
        scores = result.attention[1][-1, AT_PICTURE:AT_QUESTION]
        np.testing.assert_allclose(context.scores(), scores, atol=1e-5)
    else:
        assert turns[0] == turns[1] == turns[2]


def test_the_reference_notices_who_sees_what(path):
    """Else the test above could not fail."""
    prompt = [text(BEFORE, 0), picture(PICTURE, AT_PICTURE), text([*QUESTION, *SECOND], AT_QUESTION)]
    ends = [AT_ANSWER, AT_ANSWER + len(SECOND)]
    outs = []
    for first, second in (([1, 2, 3], [1, 2, 3]), ([1, 2, 3], [1, 2, 3, 9]), ([1, 2, 3, 9], [1, 2, 3, 9])):
        visible = np.ones((N_LAYER, ends[-1], ends[-1]), bool)
        visible[2:] = visible_rows([first, second], ends)
        outs.append(Reference(path).run(prompt, visible).logits)
    assert relative_rms(outs[0], outs[1]) > 1e-3
    assert relative_rms(outs[1], outs[2]) > 1e-3


def test_recall_0_keeps_the_first_choice(make):
    context = asked(make, "k=1,drop=0.5,score=last;k=3,drop=0.75,score=last,recall=0")
    first = kept(context)
    for i, question in enumerate((SECOND, QUESTION)):
        ask(context, question, AT_ANSWER + 5 * i)
        assert kept(context) == first
    assert context.report().n_recalled == 0


@pytest.mark.parametrize(
    ("spec", "n_pending"),
    [
        ("fastv,k=1,drop=0.5,recall=0.1", len(SECOND)),
        ("fastv,k=1,drop=0.5,recall=0", 0),
        ("fastv,k=1,drop=0,recall=0.1", 0),
        ("k=1,drop=0.5,score=random3,recall=0.1", 0),
        ("k=1,drop=0.5,score=random3;k=3,drop=0.75,score=last,recall=0.1", len(SECOND)),
    ],
)
def test_a_question_that_cannot_recall_does_not_wait(make, spec, n_pending):
    """Nothing is recalled by chance, nor what is not dropped."""
    context = asked(make, spec)
    assert context.tokens(SECOND, AT_ANSWER) == 0
    assert context.report().n_pending == n_pending


def test_a_single_token_never_recalls(make):
    context, other = asked(make, "fastv,k=1,drop=0.5,recall=1"), asked(make, "fastv,k=1,drop=0.5,recall=0")
    first = context.kept()
    for i in range(5):
        np.testing.assert_array_equal(*[ask(c, [70 + i], AT_ANSWER + i) for c in (context, other)])
    assert context.kept() == first
    assert context.report().n_recalled == 0


def test_a_question_in_chunks_recalls_once(make):
    """As llama-cpp-python decodes it: outputs of every chunk asked for, only the last read."""
    whole, chunked = asked(make, TWO), asked(make, TWO)
    expected = ask(whole, SECOND, AT_ANSWER)
    assert chunked.tokens(SECOND[:2], AT_ANSWER) == 0
    assert chunked.tokens(SECOND[2:4], AT_ANSWER + 2) == 0
    logits = ask(chunked, SECOND[4:], AT_ANSWER + 4)
    assert kept(chunked) == kept(whole)
    assert relative_rms(logits, expected) < EXACT


@pytest.mark.parametrize("score", ["last", "question-mean", "question-max", "all", "last-no-rope"])
def test_the_size_of_a_ubatch_does_not_matter(make, score):
    """16 rows at a time: the picture and the questions are in several."""
    spec = f"k=1,drop=0.5,score={score};k=3,drop=0.75,score={score},recall=0.125"
    outs, sets = [], []
    first, second = list(range(40, 75)), list(range(80, 120))
    for n_ubatch in (512, 16):
        context = make(spec, n_ubatch=n_ubatch)
        see(context)
        outs.append([ask(context, first), ask(context, second, AT_QUESTION + len(first))])
        sets.append(kept(context))
        assert context.report().n_recalled > 0
    assert sets[0] == sets[1]
    for whole, parts in zip(*outs, strict=True):
        assert relative_rms(parts, whole) < 1e-4


def test_an_aborted_second_question_leaves_nothing(make):
    """It stops in the first stage, where rows do not wait yet."""
    context, fresh = asked(make, TWO), asked(make, TWO)
    first, cells = kept(context), used(context)
    with context.aborting():
        assert context.tokens(SECOND, AT_ANSWER) == 2
    assert (kept(context), used(context), context.report().n_pending) == (first, cells, 0)
    assert relative_rms(ask(context, SECOND, AT_ANSWER), ask(fresh, SECOND, AT_ANSWER)) < EXACT
    assert kept(context) == kept(fresh)


@pytest.mark.parametrize("spec", SPECS)
def test_removing_a_question_takes_its_recall_back(make, spec):
    context = asked(make, spec)
    first, cells = kept(context), used(context)
    logits = ask(context, SECOND, AT_ANSWER)
    answer(context, logits, AT_ANSWER + len(SECOND))
    assert kept(context) != first
    assert context.remove(AT_ANSWER, -1)
    assert (kept(context), used(context)) == (first, cells)
    assert context.report().n_pending == 0

    third = [60, 61, 62]
    fresh = asked(make, spec)
    assert relative_rms(ask(context, third, AT_ANSWER), ask(fresh, third, AT_ANSWER)) < EXACT
    assert kept(context) == kept(fresh)


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_left_of_a_second_question_waits_again(make, spec):
    context, fresh = asked(make, spec), asked(make, spec)
    first = kept(context)
    ask(context, SECOND, AT_ANSWER)
    assert context.remove(AT_ANSWER + 2, -1)
    assert (kept(context), context.report().n_pending) == (first, 2)
    logits = ask(context, [60, 61], AT_ANSWER + 2)
    expected = ask(fresh, [*SECOND[:2], 60, 61], AT_ANSWER)
    assert relative_rms(logits, expected) < EXACT
    assert kept(context) == kept(fresh)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("n_left", [0, 2])
@pytest.mark.parametrize("go_on", [False, True])
def test_removing_the_end_of_the_first_question_takes_the_choice_back(make, spec, n_left, go_on):
    """Also if another question has recalled since."""
    context, fresh = asked(make, spec), make(spec)
    if go_on:
        logits = answer(context, read(context), AT_ANSWER)
        ask(context, SECOND, AT_ANSWER + 4)
        answer(context, logits, AT_ANSWER + 4 + len(SECOND))
    assert context.remove(AT_QUESTION + n_left, -1)
    assert not any(kept(context))
    assert context.report().n_pending == N + n_left
    n_read = 1 + n_left * ("question" in spec)  # rows whose attention is kept: the picture's last, and voters
    assert context.report().archive_bytes == 4 * ((N + n_left) * random_gguf.WIDTH + n_read * N)

    see(fresh)
    assert context.tokens(SECOND, AT_QUESTION + n_left) == 0
    logits = read(context)
    expected = ask(fresh, [*QUESTION[:n_left], *SECOND])
    assert relative_rms(logits, expected) < EXACT
    assert (kept(context), used(context)) == (kept(fresh), used(fresh))
    for cut in range(context.report().n_stages - 1):
        np.testing.assert_allclose(context.scores(cut), fresh.scores(cut), atol=1e-6)
    end = AT_QUESTION + n_left + len(SECOND)
    assert relative_rms(answer(context, logits, end), answer(fresh, expected, end)) < EXACT


def test_removing_into_the_picture_takes_the_choice_back(make):
    context, fresh = asked(make, TWO), make(TWO)
    assert context.remove(AT_PICTURE + 40, -1)
    assert context.report().n_pending == 40
    assert context.tokens(BEFORE, 0, logits=False) != 0  # llama.h: positions follow each other
    see(fresh, PICTURE[:40])
    at = AT_PICTURE + 40
    assert relative_rms(ask(context, SECOND, at), ask(fresh, SECOND, at)) < EXACT
    assert kept(context) == kept(fresh)
    assert context.grids() == fresh.grids()


def test_removing_generated_tokens_takes_nothing_back(make):
    context = asked(make, TWO)
    logits = ask(context, SECOND, AT_ANSWER)
    at = AT_ANSWER + len(SECOND)
    chosen, cells = kept(context), used(context)
    expected = answer(context, logits, at)
    assert context.remove(at, -1)
    assert (kept(context), used(context)) == (chosen, cells)
    assert context.report().n_pending == 0
    np.testing.assert_array_equal(answer(context, logits, at), expected)
    assert context.remove(at + 2, -1)
    assert kept(context) == chosen
    assert context.report().n_pending == 0


def test_a_draft_is_no_question(make):
    """Of tokens that are verified together every one is read. Those that are refused take nothing back."""
    context, never = asked(make, ONE), asked(make, "fastv,k=1,drop=0.5,recall=0")
    chosen = kept(context)
    at = AT_ANSWER
    for n_accepted in (1, 3, 0, 4):
        drafted = [Row(0, at + i, 70 + at + i) for i in range(5)]
        for each in (context, never):
            assert each.rows(drafted, logits=range(5)) == OK
            assert each.report().n_pending == 0
        for i in range(5):
            np.testing.assert_array_equal(context.logits(i), never.logits(i))
        at += 1 + n_accepted
        assert context.remove(at, -1)
        assert never.remove(at, -1)
        assert context.report().n_pending == 0
    assert kept(context) == chosen
    assert context.report().n_recalled == 0
    ask(context, SECOND, at)
    assert context.report().n_recalled > 0


@pytest.mark.parametrize("spec", SPECS)
def test_an_aborted_recall_can_be_repeated(make, spec):
    """Wherever it stops, it leaves no cell behind."""
    context, fresh = asked(make, spec), asked(make, spec)
    first, cells = kept(context), used(context)
    assert context.tokens(SECOND, AT_ANSWER) == 0
    cells[0] = used(context)[0]
    aborted = 0
    for after in range(0, 1000, 7):
        with context.aborting(after=after):
            status = context.flush()
        if status == OK:
            break
        assert status == ABORTED
        aborted += 1
        assert (kept(context), used(context)) == (first, cells)
        assert context.report().n_pending == len(SECOND)
        assert context.report().n_recalled == 0
    assert aborted > 3 * (context.report().n_stages - 1)  # in every stage
    assert relative_rms(read(context), ask(fresh, SECOND, AT_ANSWER)) < EXACT
    assert (kept(context), used(context)) == (kept(fresh), used(fresh))
    assert context.report().n_recalled == fresh.report().n_recalled > 0


def test_a_second_picture_is_chosen_by_its_own_question(make):
    """The first one's tokens may come back then."""
    other = rows_of(1, 40)
    context, only = asked(make, "fastv,k=1,drop=0.5,recall=0.125"), make("fastv,k=1,drop=0.5,recall=0")
    first = context.kept()
    see(only)
    ask(only)
    for c in (context, only):
        c.begin_picture()
        assert c.picture(other, AT_ANSWER) == 0
        assert c.report().n_pending == 40
        ask(c, SECOND, AT_ANSWER + 40)
    scores = context.scores()
    order = sorted(range(N, N + 40), key=lambda i: (-scores[i], i))
    assert [i for i in context.kept() if i >= N] == sorted(order[:20])
    assert [i for i in only.kept() if i >= N] == sorted(order[:20])
    assert [i for i in only.kept() if i < N] == first
    back = {i for i in context.kept() if i < N} - set(first)
    assert 0 < len(back) <= 8
    assert context.report().n_recalled == len(back)
    assert [grid.picture for grid in context.grids()] == [0, 1]

    # without its question it waits again, and the first picture is as it was
    assert context.remove(AT_ANSWER + 40, -1)
    assert (context.kept(), context.report().n_pending) == (first, 40)
    assert context.remove(AT_ANSWER, -1)
    assert (context.kept(), context.report().n_pending) == (first, 0)
    assert len(context.grids()) == 1


def test_the_similarities_of_a_picture_go_with_it(make):
    context = asked(make, "k=1,drop=0.5,pick=cover;k=3,drop=0.75,pick=cover,recall=0.125")
    assert context.report().similarity_bytes == (N * N + (N // 2) ** 2) * 4  # at each cut, of what is there
    ask(context, SECOND, AT_ANSWER)
    assert len(context.kept(0)) > N // 2
    assert context.report().similarity_bytes == (N * N + len(context.kept(0)) ** 2) * 4
    assert context.remove(AT_PICTURE, -1)
    assert context.report().similarity_bytes == 0


def test_both_pictures_can_be_recalled(make):
    context = asked(make, "fastv,k=1,drop=0.75,recall=0.125")
    context.begin_picture()
    assert context.picture(rows_of(1, 40), AT_ANSWER) == 0
    ask(context, SECOND, AT_ANSWER + 40)
    before_it = set(context.kept())
    ask(context, [60, 61, 62, 63], AT_ANSWER + 45)
    back = np.array(sorted(set(context.kept()) - before_it))
    assert 0 < (back < N).sum() <= 8
    assert 0 < (back >= N).sum() <= 5


def test_a_removed_token_does_not_come_back(make):
    """The second question recalled it; it was removed; then the second question was, too. Nor does that touch the token
    that has its position now."""
    context = asked(make, "fastv,k=1,drop=0.5,recall=0.5")
    first = set(context.kept())
    ask(context, SECOND, AT_ANSWER)
    back = sorted(set(context.kept()) - first)
    assert len(back) >= 5
    for n, i in enumerate(back):  # those behind it move up
        assert context.remove(AT_PICTURE + i - n, AT_PICTURE + i - n + 1)
        context.shift(AT_PICTURE + i - n + 1, -1, -1)
    assert not set(context.kept()) & set(back)
    assert context.remove(AT_ANSWER - len(back), -1)
    assert set(context.kept()) == first
    n_cells = [AT_ANSWER - len(back), len(BEFORE) + len(QUESTION) + N // 2]
    of_one = used(context)[0] // n_cells[0]  # of one layer
    assert used(context) == [of_one * n_cells[0], (N_LAYER - 1) * of_one * n_cells[1]]
    ask(context, SECOND, AT_ANSWER - len(back))
    assert not set(context.kept()) & set(back)


def test_what_is_left_of_a_picture_is_counted_as_it_is_chosen(make):
    """By the size of the whole picture: else decoding would promise what reading cannot keep."""
    context = make("fastv,k=1,drop=0.5,cells=256,recall=0")
    assert context.tokens(BEFORE, 0, logits=False) == 0
    assert context.picture(rows_of(2, 490), AT_PICTURE) == 0  # 4 + 245 cells
    assert context.remove(AT_PICTURE + 100, AT_PICTURE + 200)
    context.shift(AT_PICTURE + 200, -1, -100)
    assert context.tokens([7] * 8, AT_PICTURE + 390) == 1
    assert context.tokens([7] * 7, AT_PICTURE + 390) == 0
    assert np.isfinite(read(context)).all()
    assert len(context.kept()) == 245
