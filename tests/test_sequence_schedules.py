"""Sequences of one context that choose by different schedules: each is as in a context of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from test_sequences import EXACT, STEPS, TALKS, alone, ask, go_on, kept, last_rows, see

import random_gguf
from c_api import BAD_PARAMS, OK, UNSUPPORTED, Context, Model, contexts, last_error, llama, logged, read
from masked_reference import relative_rms

SPEC = "k=1,drop=0.5,score=last;k=3,drop=0.75,score=question-mean"
# who votes, with and without positions, how it is picked, what becomes of the others
SCHEDULES = [
    SPEC,
    "k=1,drop=0.25,score=all,pick=window4;k=3,drop=0.5,score=last-no-rope,recall=0.5",
    "k=1,drop=0.75,score=last-no-rope,weigh;k=3,drop=0.9,score=question-max,pick=cover",
    "k=1,drop=0.5,score=none;k=3,drop=0.5,score=random7,recall=0",
    "k=1,drop=0,score=none;k=3,drop=0,score=none,recall=0",  # keeps all
    "k=1,drop=0.5,score=question-max,merge;k=3,drop=1,score=none",
]
KEEPS_ALL = SCHEDULES[4]

Make = Callable[..., Context]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> object:
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def models(folder) -> Iterator[Callable[[str], Model]]:
    made: dict[str, Model] = {}

    def model(arch: str) -> Model:
        if arch not in made:
            random_gguf.write(folder / f"{arch}.gguf", arch)
            made[arch] = Model(folder / f"{arch}.gguf")
        return made[arch]

    yield model
    for each in made.values():
        each.close()


@pytest.fixture
def make(models: Callable[[str], Model]) -> Iterator[Make]:
    exact = {"type_k": llama.GGML_TYPE_F32, "type_v": llama.GGML_TYPE_F32}
    with contexts(models("llama"), n_seq_max=8, **exact) as make:
        yield make


def given(make: Make, *schedules: str) -> Context:
    """A context whose sequences have these."""
    context = make(SPEC)
    for seq, spec in enumerate(schedules):
        assert context.set_schedule(spec, seq=seq) == OK, last_error()
    return context


def scores(context: Context, seq: int = 0) -> list[np.ndarray]:
    return [context.scores(cut, seq=seq) for cut in range(2)]


def test_each_is_as_alone(make: Make) -> None:
    """Pictures one after the other, questions in one batch, a turn later another question, generation in one batch."""
    context = given(make, *SCHEDULES)
    whole = []
    for seq, spec in enumerate(SCHEDULES):
        see(context, TALKS[seq], seq)
        own = make(spec)
        see(own, TALKS[seq])
        whole.append(own)
    rows = [row for seq in range(len(SCHEDULES)) for row in TALKS[seq].question_rows(seq)]
    assert context.rows(rows) == 0
    found = {seq: read(context, index) for seq, index in last_rows(rows).items()}
    for seq, own in enumerate(whole):
        assert relative_rms(found[seq], ask(own, TALKS[seq])) <= EXACT
        assert kept(context, seq) == kept(own)
        for here, there in zip(scores(context, seq), scores(own), strict=True):
            np.testing.assert_allclose(here, there, atol=1e-5)
    assert len({tuple(map(len, kept(context, seq))) for seq in range(len(SCHEDULES))}) > 4

    second = [60, 61, 62]
    rows = [
        row
        for seq in range(len(SCHEDULES))
        for row in TALKS[seq]._replace(question=[*TALKS[seq].question, *second]).question_rows(seq)[-3:]
    ]
    assert context.rows(rows) == 0
    found = {seq: read(context, index) for seq, index in last_rows(rows).items()}
    recalled = 0
    for seq, own in enumerate(whole):
        assert own.tokens(second, TALKS[seq].end) == 0
        assert relative_rms(found[seq], read(own)) <= EXACT
        assert kept(context, seq) == kept(own)
        recalled += own.report().n_recalled
    assert context.report().n_recalled == recalled > 0

    for seq in (1, 4):
        for here, there in zip(
            go_on(context, found[seq], TALKS[seq].end + 3, seq),
            go_on(whole[seq], found[seq], TALKS[seq].end + 3),
            strict=True,
        ):
            assert relative_rms(here, there) <= EXACT


def test_one_that_keeps_all_is_stock_to_the_bit(make: Make) -> None:
    """As far as it has the same cells, which it has where nobody else has any."""
    context, stock = given(make, SCHEDULES[2], KEEPS_ALL), make()
    see(context, TALKS[1], 1)
    see(stock, TALKS[1])
    logits = ask(context, TALKS[1], 1)
    np.testing.assert_array_equal(logits, ask(stock, TALKS[1]))
    for here, there in zip(
        go_on(context, logits, TALKS[1].end, 1), go_on(stock, logits, TALKS[1].end), strict=True
    ):
        np.testing.assert_array_equal(here, there)


def test_sequences_of_a_model_with_windows_are_as_alone(models: Callable[[str], Model]) -> None:
    exact = {"type_k": llama.GGML_TYPE_F32, "type_v": llama.GGML_TYPE_F32}
    specs = [
        "k=6,drop=0.5,score=question-mean,weigh",
        "fastv,k=6,drop=0.75",
        "k=6,drop=0,score=none,recall=0",
    ]
    with contexts(models("gemma3"), n_seq_max=4, swa_full=False, **exact) as make:
        context = make(specs[0])
        for seq in (1, 2):
            assert context.set_schedule(specs[seq], seq=seq) == OK
        for seq in range(3):
            see(context, TALKS[seq], seq)
        rows = [row for seq in range(3) for row in TALKS[seq].question_rows(seq)]
        assert context.rows(rows) == 0
        found = {seq: read(context, index) for seq, index in last_rows(rows).items()}
        for seq, spec in enumerate(specs):
            own = make(spec)
            see(own, TALKS[seq])
            assert relative_rms(found[seq], ask(own, TALKS[seq])) <= 1e-3
            assert context.kept(seq=seq) == own.kept()


@pytest.mark.parametrize(
    "spec",
    [
        "k=2,drop=0.5,score=last;k=3,drop=0.75,score=last",
        "fastv,k=1,drop=0.5",
        "k=1,score=last;k=2,drop=0.75,score=last;k=3,drop=0.75,score=last",
    ],
)
def test_other_layers_are_refused_with_both(make: Make, spec: str) -> None:
    context = make(SPEC)
    assert not context.fits(spec)
    assert context.set_schedule(spec) == BAD_PARAMS
    assert "it has layers 1, 3, wanted is layer" in last_error()
    assert context.schedule().cuts[1].drop == 0.75
    see(context, TALKS[0])
    ask(context, TALKS[0])
    assert kept(context) == alone(make, TALKS[0]).kept


def test_cells_are_the_context_s(make: Make) -> None:
    few = make(f"{SPEC},cells=512")
    assert not few.fits(SPEC)
    assert few.set_schedule(SPEC) == BAD_PARAMS
    assert "n_cells" in last_error()
    other = SCHEDULES[1].split(",recall")[0] + ",cells=512"
    assert few.fits(other)
    assert few.set_schedule(other) == OK


def test_what_a_sequence_holds_was_chosen_by_its_schedule(make: Make) -> None:
    """Text is not chosen from, so it may stay."""
    context = make(SPEC)
    talk = TALKS[0]
    see(context, talk)
    for go_further in (lambda: ask(context, talk), lambda: None):  # it waits; it was chosen from
        assert context.set_schedule(SCHEDULES[2]) == BAD_PARAMS
        assert "sequence 0 holds visual tokens" in last_error()
        go_further()
    assert kept(context) == alone(make, talk).kept
    assert context.remove(len(talk.before), -1)
    assert context.set_schedule(SCHEDULES[2]) == OK
    context.begin_picture()
    assert context.picture(talk.picture, len(talk.before)) == 0
    ask(context, talk)
    assert kept(context) == alone(make, talk, SCHEDULES[2]).kept


@pytest.mark.parametrize("seq", [-1, 8, 2**31 - 1])
def test_there_must_be_such_a_sequence(make: Make, seq: int) -> None:
    context = make(SPEC)
    assert context.set_schedule(SCHEDULES[1], seq=seq) == BAD_PARAMS
    assert f"no sequence {seq}: the context has 8" in last_error()


def test_a_context_without_stages_has_no_schedules(make: Make) -> None:
    context = make()
    assert context.set_schedule(SPEC) == UNSUPPORTED
    assert "pyfastv_attach()" in last_error()
    assert not context.fits(SPEC)


def test_a_rule_that_the_model_cannot_have_is_refused(models: Callable[[str], Model]) -> None:
    """M-RoPE; and the context works on."""
    with contexts(models("qwen2vl"), n_seq_max=2) as make:
        context = make("k=1,drop=0.5,score=none")
        assert context.set_schedule("k=1,drop=0.5,score=last-no-rope", seq=1) == UNSUPPORTED
        assert "M-RoPE" in last_error()
        assert context.set_schedule("fastv,k=1,drop=0.75", seq=1) == OK
        see(context, TALKS[0], 1)
        ask(context, TALKS[0], 1)
        assert len(context.kept(seq=1)) == len(TALKS[0].picture) // 4


def drop(context: Context, seq: int) -> float:
    return round(context.schedule(seq=seq).cuts[0].drop, 6)


def test_how_long_a_sequence_has_its_schedule(make: Make) -> None:
    """What it was given until it is given another; what a copy brought until it is empty."""
    context = given(make, SCHEDULES[1], SCHEDULES[2])
    see(context, TALKS[0], 0)
    context.copy(0, 1)
    context.copy(0, 2)
    assert [drop(context, seq) for seq in range(4)] == [0.25, 0.25, 0.25, 0.5]
    for seq in range(3):
        assert context.remove(-1, -1, seq=seq)
    assert [drop(context, seq) for seq in range(4)] == [0.25, 0.75, 0.5, 0.5]
    see(context, TALKS[0], 0)
    context.copy(0, 1)
    context.copy(0, 2)
    context.keep_only(1)
    assert [drop(context, seq) for seq in range(4)] == [0.25, 0.25, 0.5, 0.5]
    context.clear()
    assert [drop(context, seq) for seq in range(4)] == [0.25, 0.75, 0.5, 0.5]
    assert context.set_schedule(None, seq=1) == OK
    assert drop(context, 1) == 0.5
    assert context.attach(SPEC) == OK
    assert [drop(context, seq) for seq in range(-1, 4)] == [0.5] * 5


def test_a_copy_chooses_by_the_schedule_of_the_original(make: Make) -> None:
    context = given(make, SCHEDULES[1])
    talk = TALKS[3]
    see(context, talk, 0)
    context.copy(0, 5)
    ask(context, talk, 5)
    assert kept(context, 5) == alone(make, talk, SCHEDULES[1]).kept


@pytest.mark.parametrize("whole", [False, True])
def test_a_state_has_the_schedules_of_its_sequences(make: Make, whole: bool) -> None:
    context, fresh = given(make, SCHEDULES[1], SCHEDULES[2]), make(SPEC)
    for seq in (0, 1):
        see(context, TALKS[seq], seq)
    if whole:
        state = context.save()
        assert fresh.load(state) == len(state)
    else:
        for seq in (0, 1):
            assert fresh.load_sequence(context.save_sequence(seq), seq) > 0
    for seq in (0, 1):
        logits = ask(fresh, TALKS[seq], seq)
        expected = alone(make, TALKS[seq], SCHEDULES[seq + 1])
        assert kept(fresh, seq) == expected.kept
        assert relative_rms(logits, expected.logits[0]) <= EXACT
    assert fresh.remove(-1, -1, seq=0)
    assert (drop(fresh, 0), drop(fresh, 1)) == (0.5, 0.75)


def test_a_state_with_a_schedule_that_there_cannot_be_is_refused(make: Make) -> None:
    """A share above 1; whatever else was there stays."""
    context, fresh = given(make, "k=1,drop=0.40625,score=last;k=3,drop=0.75,score=last"), make(SPEC)
    see(context, TALKS[0])
    see(fresh, TALKS[1], 1)
    state = context.save_sequence(0)
    share = np.float32(0.40625).tobytes()
    assert state.count(share) == 1
    with logged() as log:
        assert fresh.load_sequence(state.replace(share, np.float32(1.5).tobytes()), 0) == 0
    assert "drop = 1.5" in "".join(log)
    assert fresh.last_position() == -1
    assert drop(fresh, 0) == 0.5
    ask(fresh, TALKS[1], 1)
    assert kept(fresh, 1) == alone(make, TALKS[1]).kept


def test_generation_beside_others_is_one_graph_that_is_used_again(make: Make) -> None:
    """Another schedule costs a step nothing."""
    context = given(make, SCHEDULES[1], KEEPS_ALL)
    last = []
    for seq in (0, 1):
        see(context, TALKS[seq], seq)
        last.append(int(ask(context, TALKS[seq], seq).argmax()))
    before = llama.llama_perf_context(context.pointer).n_reused
    for i in range(STEPS):
        rows = [row for seq in (0, 1) for row in TALKS[seq]._replace(question=[last[seq]]).question_rows(seq)]
        rows = [row._replace(position=TALKS[row.seq].end + i) for row in rows]
        assert context.rows(rows) == 0
        last = [int(read(context, j).argmax()) for j in (0, 1)]
    assert llama.llama_perf_context(context.pointer).n_reused - before == STEPS - 1
