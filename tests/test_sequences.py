"""Several sequences in one context with stages: each is as it would be alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pytest

import random_gguf
from c_api import OK, UNSUPPORTED, Context, Model, Row, contexts, last_error, llama, read
from decoding import random_llama
from masked_reference import relative_rms

SPEC = "k=1,drop=0.5,score=last;k=3,drop=0.75,score=question-mean"
MERGED = "k=1,drop=0.5,score=question-max,merge;k=2,drop=0.75,merge"
WEIGHED = "k=1,drop=0.5,weigh;k=3,drop=0.75,weigh"
STEPS = 6  # of generation
EXACT = 1e-4  # relative rms: other row counts round differently


class Talk(NamedTuple):
    """Text, a picture and a question, from position 0 on."""

    before: list[int]
    picture: np.ndarray  # float32 [n, n_embd]
    question: list[int]

    @property
    def at_question(self) -> int:
        return len(self.before) + len(self.picture)

    @property
    def end(self) -> int:
        return self.at_question + len(self.question)

    def question_rows(self, seq: int, begin: int = 0, end: int | None = None) -> list[Row]:
        """Part of the question as rows of a sequence."""
        rows = [Row(seq, self.at_question + i, token) for i, token in enumerate(self.question)]
        return rows[begin:end]


class Alone(NamedTuple):
    """What a talk comes to in a context of its own."""

    kept: list[list[int]]  # [cut]
    logits: list[np.ndarray]  # behind the question and behind each generated token
    tokens: list[int]  # generated


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with random_llama(tmp_path_factory.mktemp("model")) as model:
        yield model


@pytest.fixture
def make(model: Model) -> Iterator[Callable[..., Context]]:
    exact = {"type_k": llama.GGML_TYPE_F32, "type_v": llama.GGML_TYPE_F32}
    with contexts(model, n_seq_max=8, **exact) as make:
        yield make


def talk_of(i: int) -> Talk:
    rng = np.random.default_rng(i)
    picture = rng.normal(size=(32 + 4 * i, random_gguf.WIDTH)).astype(np.float32)  # up to 60 rows
    tokens = rng.integers(3, random_gguf.VOCAB, size=20).tolist()
    return Talk(tokens[: 2 + i % 3], picture, tokens[8 : 12 + i])


TALKS = [talk_of(i) for i in range(8)]


def see(context: Context, talk: Talk, seq: int = 0) -> None:
    assert context.tokens(talk.before, 0, logits=False, seq=seq) == 0
    show(context, talk, seq)


def show(context: Context, talk: Talk, seq: int = 0) -> None:
    context.begin_picture()
    assert context.picture(talk.picture, len(talk.before), seq=seq) == 0


def ask(context: Context, talk: Talk, seq: int = 0) -> np.ndarray:
    assert context.tokens(talk.question, talk.at_question, seq=seq) == 0
    return read(context)


def kept(context: Context, seq: int = 0) -> list[list[int]]:
    return [context.kept(cut, seq=seq) for cut in range(context.report().n_stages - 1)]


def go_on(context: Context, logits: np.ndarray, position: int, seq: int = 0) -> list[np.ndarray]:
    """Logits of greedy steps behind these."""
    out = []
    for i in range(STEPS):
        assert context.tokens([int(logits.argmax())], position + i, seq=seq) == 0
        logits = read(context)
        out.append(logits)
    return out


def alone(make: Callable[..., Context], talk: Talk, spec: str = SPEC) -> Alone:
    context = make(spec)
    see(context, talk)
    logits = ask(context, talk)
    chosen = kept(context)
    steps = go_on(context, logits, talk.end)
    return Alone(chosen, [logits, *steps], [int(row.argmax()) for row in (logits, *steps)])


def assert_close(logits: np.ndarray, expected: np.ndarray) -> None:
    assert relative_rms(logits, expected) <= EXACT


def last_rows(rows: Sequence[Row]) -> dict[int, int]:
    """The index of each sequence's last row in a batch."""
    return {row.seq: i for i, row in enumerate(rows)}


@pytest.mark.parametrize("recall", [0, 0.25])
def test_eight_interleaved_sequences_are_each_as_alone(make, recall):
    """Text of many in one batch, pictures one after the other, generation in one batch."""
    spec = f"{SPEC},recall={recall}"
    expected = [alone(make, talk, spec) for talk in TALKS]
    context = make(spec)
    logits: dict[int, np.ndarray] = {}
    answers: list[list[int]] = [[] for _ in TALKS]

    def decode(rows: list[Row], reads: Sequence[int]) -> None:
        assert context.rows(rows, logits=[last_rows(rows)[seq] for seq in reads]) == 0
        for seq in reads:
            logits[seq] = read(context, last_rows(rows)[seq])

    def next_rows(seqs: Sequence[int]) -> list[Row]:
        rows = []
        for seq in seqs:
            position = TALKS[seq].end + len(answers[seq])
            answers[seq].append(int(logits[seq].argmax()))
            rows.append(Row(seq, position, answers[seq][-1]))
        return rows

    decode([Row(s, i, token) for s, talk in enumerate(TALKS) for i, token in enumerate(talk.before)], [])
    for seq in (0, 2, 4, 6):
        show(context, TALKS[seq], seq)
    decode([row for seq in (0, 4, 2, 6) for row in TALKS[seq].question_rows(seq, 0, 2)], [])
    for seq in (1, 3, 5, 7):
        show(context, TALKS[seq], seq)
    decode([row for seq in range(8) for row in TALKS[seq].question_rows(seq, 2 * (seq % 2 == 0), 3)], [])
    decode([row for seq in (0, 2, 4, 6) for row in TALKS[seq].question_rows(seq, 3)], [0, 2, 4, 6])
    assert [context.kept(seq=seq) == [] for seq in range(8)] == [False, True] * 4
    # some generate while others are still asked
    decode(next_rows([0, 2, 4, 6]), [0, 2, 4, 6])
    rows = [row for seq in (1, 3, 5, 7) for row in TALKS[seq].question_rows(seq, 3)]
    decode(next_rows([0, 2]) + rows + next_rows([4, 6]), range(8))

    for seq in range(8):
        assert kept(context, seq) == expected[seq].kept
        assert_close(logits[seq], expected[seq].logits[len(answers[seq])])
    while len(answers[1]) < STEPS - 2:
        decode(next_rows(range(8)), range(8))
    for seq in range(8):
        assert answers[seq] == expected[seq].tokens[: len(answers[seq])]
        assert_close(logits[seq], expected[seq].logits[len(answers[seq])])


def test_without_drop_interleaved_sequences_are_stock(make):
    """But for rounding: later layers run on each sequence's rows behind each other."""
    outs = []
    for context in (make(), make("k=1,drop=0,score=last;k=3,drop=0,score=last")):
        logits = []
        for seq in (0, 1):
            see(context, TALKS[seq], seq)
        rows = TALKS[1].question_rows(1) + TALKS[0].question_rows(0)
        for _ in range(4):
            assert context.rows(rows) == 0
            last = {seq: read(context, i) for seq, i in last_rows(rows).items()}
            logits += [last[seq] for seq in (0, 1)]
            rows = [
                Row(seq, context.last_position(seq=seq) + 1, int(row.argmax())) for seq, row in last.items()
            ]
        outs.append(logits)
    for logits, expected in zip(*outs, strict=True):
        assert_close(logits, expected)


def test_text_without_a_picture_in_the_same_batches_is_stock(make):
    """It waits with the others, and loses nothing."""
    talk = TALKS[3]
    stock, context, whole = make(), make(SPEC), alone(make, talk)
    context.tokens([5, 6], 0, logits=False, seq=1)
    see(context, talk, 0)
    assert context.rows([*talk.question_rows(0, 0, 2), *[Row(1, 2 + i, 60 + i) for i in range(3)]]) == 0
    assert context.report().n_pending == len(talk.picture) + 2 + 3
    assert context.rows([Row(1, 5, 70), *talk.question_rows(0, 2)]) == 0
    assert_close(read(context, 0), stock_logits(stock, [5, 6, 60, 61, 62, 70]))
    assert_close(read(context, -1), whole.logits[0])
    assert context.tokens([71], 6, seq=1) == 0
    assert stock.tokens([71], 6) == 0
    assert_close(read(context), read(stock))
    assert kept(context, 1) == [[], []]


def stock_logits(stock: Context, tokens: list[int]) -> np.ndarray:
    assert stock.tokens(tokens, 0) == 0
    return read(stock)


@pytest.mark.parametrize("asked_for", [False, True])
def test_who_generates_does_not_make_the_choice_of_who_waits(make, asked_for):
    """Also if outputs of the one that waits were asked for, but not read: that counts as not asked for."""
    expected = [alone(make, TALKS[0]), alone(make, TALKS[1])]
    context = make(SPEC)
    see(context, TALKS[0], 0)
    logits = [ask(context, TALKS[0], 0)]
    see(context, TALKS[1], 1)
    assert context.rows(TALKS[1].question_rows(1, 0, 2), logits=[1] if asked_for else []) == 0
    waiting = context.report().n_pending

    for i in range(STEPS):
        assert context.tokens([int(logits[-1].argmax())], TALKS[0].end + i, seq=0) == 0
        logits.append(read(context))
    assert context.report().n_pending == waiting == len(TALKS[1].picture) + 2
    assert kept(context, 1) == [[], []]
    for row, wanted in zip(logits, expected[0].logits, strict=True):
        assert_close(row, wanted)

    assert context.rows(TALKS[1].question_rows(1, 2)) == 0
    assert_close(read(context), expected[1].logits[0])
    assert (kept(context, 0), kept(context, 1)) == (expected[0].kept, expected[1].kept)


def test_a_token_generated_beside_another_s_question_recalls_nothing(make):
    """It goes through the same batch, but it is no question."""
    spec = "fastv,k=1,drop=0.5,recall=0.5"
    expected = alone(make, TALKS[0], spec)
    context = make(spec)
    see(context, TALKS[0], 0)
    logits = [ask(context, TALKS[0], 0)]
    see(context, TALKS[1], 1)
    for i in range(3):  # the question comes token by token, nobody reads before its end
        token = Row(0, TALKS[0].end + i, int(logits[-1].argmax()))
        assert context.rows([token, *TALKS[1].question_rows(1, i, i + 1)], logits=[0]) == 0
        logits.append(read(context, 0))
    assert context.report().n_recalled == 0
    assert kept(context, 0) == expected.kept
    for row, wanted in zip(logits, expected.logits, strict=False):
        assert_close(row, wanted)


@pytest.mark.parametrize("spec", [SPEC, MERGED, WEIGHED])
def test_two_questions_on_a_copy_of_a_picture_that_waits(make, spec):
    """One picture decoded, two sequences ask about it, in one batch."""
    first = TALKS[5]
    second = first._replace(question=TALKS[3].question)
    expected = [alone(make, first, spec), alone(make, second, spec)]
    context = make(spec)
    see(context, first, 0)
    context.copy(0, 1)
    assert context.report().n_pending == 2 * len(first.picture)
    rows = first.question_rows(0) + second.question_rows(1)
    assert context.rows(rows) == 0
    for seq, index in last_rows(rows).items():
        assert_close(read(context, index), expected[seq].logits[0])
        assert kept(context, seq) == expected[seq].kept
    assert kept(context, 0) != kept(context, 1)

    for seq, talk in enumerate((first, second)):
        steps = go_on(context, expected[seq].logits[0], talk.end, seq)
        for row, wanted in zip(steps, expected[seq].logits[1:], strict=True):
            assert_close(row, wanted)


def test_copies_share_their_rows(make):
    """The report counts bytes that there are."""
    first = TALKS[5]
    second = first._replace(question=TALKS[3].question)
    context, apart = make(SPEC), make(SPEC)
    see(context, first, 0)
    context.copy(0, 1)
    see(apart, first, 0)
    see(apart, first, 1)
    picture = first.picture.nbytes
    paid = 2 * 4 * len(first.picture)  # in each sequence by its last row to every token
    assert context.report().archive_bytes == apart.report().archive_bytes - picture == picture + paid
    for c in (context, apart):
        ask(c, first, 0)
        ask(c, second, 1)
    assert context.report().archive_bytes == apart.report().archive_bytes - picture


def test_a_copy_made_before_the_question_was_read(make):
    """Both have been asked the same; one output, that of the batch."""
    talk = TALKS[4]
    expected = alone(make, talk)
    context = make(SPEC)
    see(context, talk, 0)
    assert context.tokens(talk.question, talk.at_question) == 0
    context.copy(0, 1)
    for index in (-1, len(talk.question) - 1):
        assert_close(read(context, index), expected.logits[0])
    assert kept(context, 0) == kept(context, 1) == expected.kept
    for seq in (0, 1):
        for row, wanted in zip(
            go_on(context, expected.logits[0], talk.end, seq), expected.logits[1:], strict=True
        ):
            assert_close(row, wanted)


def test_a_copy_behind_the_question_goes_on_as_the_original(make):
    talk = TALKS[2]
    expected = alone(make, talk)
    context = make(SPEC)
    see(context, talk, 4)
    logits = ask(context, talk, 4)
    context.copy(4, 1)
    assert kept(context, 1) == kept(context, 4) == expected.kept
    for seq in (4, 1):
        for row, wanted in zip(go_on(context, logits, talk.end, seq), expected.logits[1:], strict=True):
            assert_close(row, wanted)
    assert context.remove(-1, -1, seq=4)
    assert context.remove(talk.end, -1, seq=1)
    for row, wanted in zip(go_on(context, logits, talk.end, 1), expected.logits[1:], strict=True):
        assert_close(row, wanted)


@pytest.mark.parametrize("spec", [SPEC, MERGED, WEIGHED])
def test_original_and_copy_recall_each_for_its_own_question(make, spec):
    """They share the cells of the first choice."""
    spec += ",recall=0.25"
    talk, questions = TALKS[7], [[60, 61, 62, 63], [80, 81, 82, 83, 84]]
    expected = []
    for question in questions:
        single = make(spec)
        see(single, talk)
        ask(single, talk)
        assert single.tokens(question, talk.end) == 0
        expected.append((read(single), kept(single)))
    assert expected[0][1] != expected[1][1]

    context = make(spec)
    see(context, talk)
    ask(context, talk)
    context.copy(0, 1)
    for seq in (0, 1):
        assert context.tokens(questions[seq], talk.end, seq=seq) == 0
        assert_close(read(context), expected[seq][0])
        assert kept(context, seq) == expected[seq][1]
    assert context.remove(talk.end, -1, seq=0)
    token = [int(expected[1][0].argmax())]
    at = talk.end + len(questions[1])
    assert single.tokens(token, at) == 0
    assert context.tokens(token, at, seq=1) == 0
    assert_close(read(context), read(single))
    assert context.tokens(questions[0], talk.end, seq=0) == 0
    assert_close(read(context), expected[0][0])
    assert kept(context, 0) == expected[0][1]


@pytest.mark.parametrize("spec", [SPEC, MERGED, WEIGHED])
@pytest.mark.parametrize("recall", [0, 0.25])
def test_a_copy_may_be_put_behind_what_a_sequence_has(make, spec, recall):
    """A conversation with two pictures, copied in two parts."""
    context = make(f"{spec},recall={recall}")
    talk, n = TALKS[2], len(TALKS[2].picture)
    see(context, talk, 0)
    ask(context, talk, 0)
    context.begin_picture()
    assert context.picture(TALKS[7].picture, talk.end, seq=0) == 0
    at_question = talk.end + len(TALKS[7].picture)
    assert context.tokens(talk.question, at_question) == 0
    read(context)
    context.copy(0, 1, -1, talk.end)
    context.copy(0, 1, talk.end, -1)
    whole = kept(context, 0)
    if recall == 0:
        assert kept(context, 1) == whole
    else:
        assert all(set(parts) < set(indices) for parts, indices in zip(kept(context, 1), whole, strict=True))

    before = context.kept(seq=1)
    logits = []
    for seq in (0, 1):
        assert context.tokens([60, 61, 62, 63], at_question + len(talk.question), seq=seq) == 0
        logits.append(read(context))
    if recall == 0:
        assert_close(logits[1], logits[0])
    else:
        back = np.array(sorted(set(context.kept(seq=1)) - set(before)))
        assert 0 < (back < n).sum() <= recall * n
        assert np.isfinite(logits[1]).all()


def test_a_copy_of_the_picture_alone_chooses_anew(make):
    """The choice was the question's, and that was not copied."""
    first = TALKS[5]
    second = first._replace(question=TALKS[3].question)
    expected = [alone(make, first), alone(make, second)]
    context = make(SPEC)
    see(context, first, 0)
    logits = ask(context, first, 0)
    used = list(context.report().kv_bytes_used)
    context.copy(0, 1, -1, first.at_question)
    assert kept(context, 1) == [[], []]
    assert list(context.report().kv_bytes_used) == used  # no cell of its own yet
    assert context.last_position(seq=1) == first.at_question - 1

    assert_close(ask(context, second, 1), expected[1].logits[0])
    assert (kept(context, 0), kept(context, 1)) == (expected[0].kept, expected[1].kept)
    for row, wanted in zip(go_on(context, logits, first.end, 0), expected[0].logits[1:], strict=True):
        assert_close(row, wanted)


def test_a_copy_in_front_of_what_a_sequence_has_leaves_that(make):
    """Though the choice that the copy has to make again is taken back in it."""
    talk = TALKS[5]
    context = make(SPEC)
    see(context, talk, 0)
    ask(context, talk, 0)
    assert context.tokens([60, 61, 62], talk.end, seq=1) == 0
    read(context)
    used = list(context.report().kv_bytes_used)
    context.copy(0, 1, -1, talk.at_question)
    assert list(context.report().kv_bytes_used) == used
    assert kept(context, 1) == [[], []]


@pytest.mark.parametrize("end", [-1, 30])
def test_a_copy_of_a_part_is_as_if_the_rest_had_never_been(make, end):
    """From the third position on, to the end or to within the picture."""
    talk = TALKS[5]
    expected = make(SPEC)
    context = make(SPEC)
    for c, seq in ((expected, 1), (context, 0)):
        see(c, talk, seq)
    context.copy(0, 1, 3, end)
    if end >= 0:
        assert expected.remove(end, -1, seq=1)
    assert expected.remove(0, 3, seq=1)
    at_question = expected.last_position(seq=1) + 1
    assert context.last_position(seq=1) == at_question - 1
    outs = []
    for c in (expected, context):
        assert c.tokens(talk.question, at_question, seq=1) == 0
        outs.append(read(c))
    assert_close(outs[1], outs[0])
    assert kept(context, 1) == kept(expected, 1)


def asked(make: Callable[..., Context], n: int) -> tuple[Context, list[np.ndarray]]:
    """A context where sequences were asked, one after the other; their logits."""
    context = make(SPEC)
    logits = []
    for seq in range(n):
        see(context, TALKS[seq], seq)
        logits.append(ask(context, TALKS[seq], seq))
    return context, logits


def test_removing_a_sequence_leaves_the_others(make):
    expected = [alone(make, TALKS[seq]) for seq in range(3)]
    context, logits = asked(make, 3)
    see(context, TALKS[3], 3)
    assert context.remove(-1, -1, seq=1)
    assert context.remove(-1, -1, seq=3)
    assert context.report().n_pending == 0
    assert (context.last_position(seq=1), kept(context, 1)) == (-1, [[], []])
    for seq in (0, 2):
        assert kept(context, seq) == expected[seq].kept
        steps = go_on(context, logits[seq], TALKS[seq].end, seq)
        for row, wanted in zip(steps, expected[seq].logits[1:], strict=True):
            assert_close(row, wanted)
    see(context, TALKS[1], 1)  # and its number can be used again
    assert_close(ask(context, TALKS[1], 1), expected[1].logits[0])


def test_keeping_one_sequence_removes_the_others(make):
    expected = alone(make, TALKS[1])
    context, logits = asked(make, 3)
    see(context, TALKS[3], 3)
    context.keep_only(1)
    assert [context.last_position(seq=seq) for seq in range(4)] == [-1, TALKS[1].end - 1, -1, -1]
    assert [bool(context.kept(seq=seq)) for seq in range(4)] == [False, True, False, False]
    assert context.report().n_pending == 0
    single = make(SPEC)
    see(single, TALKS[1])
    ask(single, TALKS[1])
    assert list(context.report().kv_bytes_used) == list(single.report().kv_bytes_used)
    assert context.report().archive_bytes == single.report().archive_bytes
    for row, wanted in zip(go_on(context, logits[1], TALKS[1].end, 1), expected.logits[1:], strict=True):
        assert_close(row, wanted)


def test_removing_all_sequences_at_once(make):
    """llama.h: a negative sequence matches all."""
    expected = alone(make, TALKS[0])
    context, _ = asked(make, 3)
    see(context, TALKS[3], 3)
    assert context.remove(-1, -1, seq=-1)
    report = context.report()
    assert (report.n_pending, report.archive_bytes, sum(report.kv_bytes_used)) == (0, 0, 0)
    see(context, TALKS[0], 3)
    assert_close(ask(context, TALKS[0], 3), expected.logits[0])
    assert kept(context, 3) == expected.kept


def test_removing_the_end_of_all_sequences_takes_their_choices_back(make):
    context, _ = asked(make, 2)
    begin = min(TALKS[seq].at_question for seq in range(2))
    assert context.remove(begin, -1, seq=-1)
    assert kept(context, 0) == kept(context, 1) == [[], []]
    assert context.report().n_pending == sum(begin - len(talk.before) for talk in TALKS[:2])


@pytest.mark.parametrize("delta", [9, -2])
def test_shifting_one_sequence_leaves_the_others(make, delta):
    """Rows that wait and rows that were kept; RoPE knows distances only."""
    expected = [alone(make, TALKS[seq]) for seq in range(4)]
    context, logits = asked(make, 2)
    see(context, TALKS[2], 2)
    see(context, TALKS[3], 3)
    for seq in (1, 2):
        assert context.remove(0, 2, seq=seq)  # makes room below
        context.shift(2, -1, delta, seq=seq)
    reference = make(SPEC)  # without the first two tokens, and not shifted
    see(reference, TALKS[2])
    assert reference.remove(0, 2)

    assert context.tokens(TALKS[2].question, TALKS[2].at_question + delta, seq=2) == 0
    assert_close(read(context), ask(reference, TALKS[2]))
    assert kept(context, 2) == kept(reference)
    assert_close(ask(context, TALKS[3], 3), expected[3].logits[0])
    for row, wanted in zip(go_on(context, logits[0], TALKS[0].end, 0), expected[0].logits[1:], strict=True):
        assert_close(row, wanted)
    assert context.last_position(seq=1) == TALKS[1].end - 1 + delta
    assert kept(context, 1) == expected[1].kept


def test_a_question_after_a_context_shift(make):
    """The middle goes, with part of the picture; the rest moves up; what is left can be recalled."""
    talk, second = TALKS[7], TALKS[5].question
    context, apart = make("fastv,k=1,drop=0.5,recall=0.25"), make("fastv,k=1,drop=0.5,recall=0.25")
    n, removed = len(talk.picture), 20
    first = len(talk.before)
    for c in (context, apart):
        see(c, talk)
        ask(c, talk)
        assert c.remove(first + 10, first + 10 + removed)
    before = set(context.kept())
    gone = set(range(10, 10 + removed))
    assert not before & gone
    context.shift(first + 10 + removed, -1, -removed)

    outs = []
    for c, end in ((context, talk.end - removed), (apart, talk.end)):
        assert c.tokens(second, end) == 0
        outs.append(read(c))
        after = set(c.kept())
        assert before < after
        assert len(after - before) <= n // 4
        assert not after & gone
        assert c.report().n_recalled == len(after - before)
    assert relative_rms(outs[0], outs[1]) > 0.01  # distances have changed


@pytest.mark.parametrize(
    "rule",
    [
        "pick=cover",
        "pick=cover,weigh",
        "pick=cover,merge",
        "weigh;k=2,drop=0.75,score=question-max,pick=cover,weigh",
    ],
)
def test_a_picture_that_is_gone_is_not_compared(make, rule):
    """A context shift over a whole picture: there is nothing left of it to choose from. The other can be recalled."""
    gone, talk = TALKS[6], TALKS[7]
    context = make(f"k=1,drop=0.5,score=question-max,{rule},recall=0.25")
    context.begin_picture()
    assert context.picture(gone.picture, 0) == 0
    n = len(gone.picture)
    context.begin_picture()
    assert context.picture(talk.picture, n) == 0
    end = n + len(talk.picture)
    assert context.tokens(talk.question, end) == 0
    read(context)

    end += len(talk.question)
    assert context.remove(0, n)
    context.shift(n, -1, -n)
    assert context.tokens(TALKS[5].question, end - n) == 0
    assert np.isfinite(read(context)).all()
    assert max(context.kept()) < len(talk.picture) == len(context.scores())
    assert context.report().n_recalled > 0


@pytest.mark.parametrize("how", ["pick=cover", "pick=cover,weigh"])
def test_nothing_is_compared_where_nothing_arrives(make, how):
    talk = TALKS[7]
    plain, context = (
        make(f"k=1,drop=1,score=question-max{rule};k=2,drop=1,score=question-max{rule}")
        for rule in ("", f",{how}")
    )
    for c in (plain, context):
        see(c, talk)
    logits = ask(plain, talk)
    np.testing.assert_array_equal(ask(context, talk), logits)
    assert kept(context) == [[], []]
    for row, wanted in zip(go_on(context, logits, talk.end), go_on(plain, logits, talk.end), strict=True):
        np.testing.assert_array_equal(row, wanted)


@pytest.mark.parametrize("drop", [0.5, 1])
def test_the_later_layers_of_nothing_and_of_one_row(make, drop):
    """A picture of one token, without and with text; and one that is removed before it was chosen from."""
    talk = TALKS[0]
    spec = f"k=1,drop={drop},score=question-max,pick=cover,weigh;k=2,drop={drop},score=all,pick=cover"
    context = make(spec)
    assert context.flush() == OK
    assert context.picture(talk.picture[:1], 0) == 0
    assert context.flush() == OK
    assert kept(context) == [[0] if drop < 1 else []] * 2
    assert context.tokens([7], 1) == 0
    assert np.isfinite(read(context)).all()

    assert context.picture(talk.picture, 2) == 0
    assert context.remove(2, -1)
    assert context.flush() == OK
    assert context.tokens(talk.question, 2) == 0
    assert np.isfinite(read(context)).all()
    assert kept(context) == [[0] if drop < 1 else []] * 2


def test_tokens_removed_in_front_of_some_that_were_removed_before(make):
    """Everything moves, but for what is gone: a cut between the two is no less a cut."""
    rows = TALKS[7].picture
    context = make("fastv,k=1,drop=0.5,recall=1")
    assert context.picture(rows[:10], 0) == 0
    assert context.tokens([3, 4, 5], 10) == 0
    read(context)
    assert context.remove(5, 10)
    context.shift(-1, -1, 100)
    assert context.remove(102, -1)
    assert set(context.kept()) <= {0, 1}
    assert context.tokens([3, 4, 5], 102) == 0
    read(context)
    assert context.kept() == [0, 1]
    assert not context.scores()[2:].any()


def test_a_shift_of_everything_does_not_change_what_a_question_recalls(make):
    talk, second = TALKS[7], TALKS[5].question
    outs, sets = [], []
    for delta in (0, 13):
        context = make("fastv,k=1,drop=0.5,recall=0.25")
        see(context, talk, 3)
        ask(context, talk, 3)
        context.shift(-1, -1, delta, seq=3)
        assert context.tokens(second, talk.end + delta, seq=3) == 0
        outs.append(read(context))
        sets.append(context.kept(seq=3))
    assert_close(outs[1], outs[0])
    assert sets[0] == sets[1]


def test_a_cache_for_each_sequence_is_refused(make):
    context = make(n_seq_max=2, kv_unified=False)
    assert context.attach(SPEC) == UNSUPPORTED
    assert "n_seq_max = 2" in last_error()
    assert "kv_unified" in last_error()
    see(context, TALKS[0], 1)
    assert np.isfinite(ask(context, TALKS[0], 1)).all()  # as without stages
    assert make(n_seq_max=1, kv_unified=False).attach(SPEC) == OK


def test_rows_that_two_sequences_share(make):
    """A row of a batch may belong to several sequences, as a common prompt does."""
    talk = TALKS[1]
    expected = alone(make, talk)
    context = make(SPEC)
    both = (0, 1)
    assert context.rows([Row(both, i, token) for i, token in enumerate(talk.before)], logits=False) == 0
    assert context.picture(talk.picture, len(talk.before), seq=both) == 0
    rows = [row._replace(seq=both) for row in talk.question_rows(0)]
    assert context.rows(rows) == 0
    for index in (-1, len(rows) - 1):
        assert_close(read(context, index), expected.logits[0])
    assert kept(context, 0) == kept(context, 1) == expected.kept
    for seq in both:
        for row, wanted in zip(
            go_on(context, expected.logits[0], talk.end, seq), expected.logits[1:], strict=True
        ):
            assert_close(row, wanted)


def test_the_report_knows_what_stock_would_use_for_copies(make):
    """Sequences that chose from one picture share its cells in the first stage only."""
    talk = TALKS[6]
    stock, context = make(), make("fastv,k=1,drop=0.25")
    for c in (stock, context):
        see(c, talk, 0)
        for seq in range(1, 4):
            c.copy(0, seq)
        for seq in range(4):
            assert c.tokens(TALKS[seq].question, talk.at_question, seq=seq) == 0
            read(c)
    assert context.report().kv_bytes_used_stock == stock.report().kv_bytes_used_stock


def test_copies_that_do_not_fit_later_are_refused_when_decoding(make):
    """Each has cells of its own in the later stages."""
    talk = TALKS[7]  # 60 rows
    context = make("fastv,k=1,drop=0.25", n_ctx=256)
    see(context, talk, 0)
    for seq in range(1, 8):
        context.copy(0, seq)
    rows = [
        row
        for seq in range(8)
        for row in TALKS[0]._replace(picture=talk.picture, before=talk.before).question_rows(seq)
    ]
    assert context.rows(rows) == 1  # 8 * (45 + 4) cells
    context.keep_only(0)
    assert context.rows([row for row in rows if row.seq == 0]) == 0
    assert np.isfinite(read(context)).all()


def test_that_others_took_the_cells_is_reported_when_decoding(make):
    talk = TALKS[7]
    context = make("fastv,k=1,drop=0.5,cells=256,recall=0", n_ctx=512)
    see(context, talk, 0)  # 3 + 30 cells
    assert context.tokens([7] * 240, 0, seq=1) == 0
    assert context.tokens(talk.question, talk.at_question, seq=0) == 1
    assert context.remove(200, -1, seq=1)
    assert context.tokens(talk.question, talk.at_question, seq=0) == 0
    assert np.isfinite(read(context)).all()


def test_what_is_shifted_below_0_is_removed(make):
    """As llama.cpp does with cells."""
    talk = TALKS[6]
    context, removed = make("fastv,k=1,drop=0.1"), make("fastv,k=1,drop=0.1")
    first = len(talk.before)
    for c in (context, removed):
        see(c, talk)
        see(c, talk, 1)
        ask(c, talk, 1)
    assert removed.remove(0, first + 6)
    assert removed.remove(0, first + 6, seq=1)
    context.shift(-1, -1, -(first + 6))
    context.shift(-1, -1, -(first + 6), seq=1)
    assert context.report().n_pending == removed.report().n_pending == len(talk.picture) - 6
    assert kept(context, 1) == kept(removed, 1)
    assert context.tokens(talk.question, talk.at_question - first - 6) == 0
    assert_close(read(context), ask(removed, talk))
    assert kept(context) == kept(removed)
    assert context.report().kv_bytes_used[1] == removed.report().kv_bytes_used[1]
