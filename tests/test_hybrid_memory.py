"""The memory of models with recurrent layers beside attention: what goes back does so as a whole, or is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from c_api import Context, Row, contexts, llama, logged, read
from decoding import PICTURE, decode_part
from masked_reference import Part, relative_rms
from talks import OTHER, QUESTION, SECOND, TWO_CUTS, Chat, Talker, talker_of
from test_cancel import flush_after_stops

EXACT = 1e-4  # relative rms: other row counts round differently
FEW, ABORTED = 4, 2  # rows that may be taken back; llama_decode's status

Make = Callable[..., Context]


@pytest.fixture(scope="module", params=TWO_CUTS)
def talker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Talker]:
    folder: Path = tmp_path_factory.mktemp("hybrids")
    with talker_of(folder, request.param) as talker:
        yield talker


@pytest.fixture
def make(talker: Talker) -> Iterator[Make]:
    exact = {"type_k": llama.GGML_TYPE_F32, "type_v": llama.GGML_TYPE_F32}
    with contexts(talker.model, n_ctx=512, **exact) as make:
        yield make


def seen(talker: Talker, context: Context, *, seq: int = 0, seed: int = 1) -> Chat:
    """A text and a picture, which waits."""
    chat = Chat(talker, context, seq)
    chat.tell([1, 2, 3])
    chat.show(seed)
    return chat


def asked(talker: Talker, context: Context, *, seq: int = 0, seed: int = 1) -> Chat:
    chat = seen(talker, context, seq=seq, seed=seed)
    chat.say(QUESTION)
    return chat


def facts(context: Context, seq: int = 0) -> tuple[object, ...]:
    cuts = range(context.report().n_stages - 1)
    kept = [context.kept(cut, seq=seq) for cut in cuts]
    scores = [context.scores(cut, seq=seq).tolist() for cut in cuts]
    return kept, scores, context.grids(seq=seq), context.last_position(seq=seq)


def go_on(chat: Chat) -> list[np.ndarray]:
    """Another question, two tokens, and one more."""
    return [chat.say(OTHER), chat.say([70]), chat.say([71]), chat.say(SECOND)]


def assert_goes_on_alike(a: Chat, b: Chat) -> None:
    for logits, expected in zip(go_on(a), go_on(b), strict=True):
        assert relative_rms(logits, expected) <= EXACT
    assert facts(a.context, a.seq)[0] == facts(b.context, b.seq)[0]


#
# taking back
#


@pytest.mark.parametrize("talk", [seen, asked])
def test_the_end_of_a_sequence_goes_only_with_all_of_it(talker: Talker, make: Make, talk) -> None:
    context, untouched = make(talker.spec(2)), make(talker.spec(2))
    chat, other = talk(talker, context), talk(talker, untouched)
    before = facts(context), context.report().n_pending
    last = context.last_position()
    for begin in (1, 2, 3, last - 1, last):
        assert not context.remove(begin, -1)
        assert not context.remove(begin, -1, seq=-1)
        assert not context.remove(begin, last + 7)
    assert (facts(context), context.report().n_pending) == before
    assert context.remove(last + 1, -1)
    np.testing.assert_array_equal(go_on(chat), go_on(other))

    assert context.remove(0, -1)
    assert context.last_position() == -1
    assert sum(context.report().kv_bytes_used) == 0
    np.testing.assert_array_equal(
        asked(talker, context).say([9]), asked(talker, make(talker.spec(2))).say([9])
    )


def test_programs_that_look_before_they_remove_see_that_nothing_goes_back(talker: Talker, make: Make) -> None:
    """As in stock: seq_pos_min() is the last position."""
    stock, staged = make(), make(talker.spec())
    for context in (stock, staged):
        asked(talker, context)
    assert staged.first_position() == stock.first_position() == staged.last_position()


def test_all_sequences_at_once_are_removed(talker: Talker, make: Make) -> None:
    context = make(talker.spec(), n_seq_max=2)
    for seq in (0, 1):
        asked(talker, context, seq=seq, seed=seq)
    assert context.remove(-1, -1, seq=-1)
    assert [context.last_position(seq=seq) for seq in (0, 1)] == [-1, -1]
    assert sum(context.report().kv_bytes_used) == 0


@pytest.mark.parametrize("drop", ["drop=0", "drop=0.5"])
def test_a_draft_is_taken_back_as_far_as_states_are_kept(talker: Talker, make: Make, drop: str) -> None:
    spec = talker.spec().replace("drop=0.5", drop)
    context, without = make(spec, n_rs_seq=FEW), make(spec, n_rs_seq=FEW)
    chat, other = asked(talker, context), asked(talker, without)
    for c in (chat, other):
        c.say([10])
    at = chat.at
    assert context.rows([Row(0, at + i, 20 + i) for i in range(3)], logits=range(3)) == 0
    assert not context.remove(at - FEW, -1)
    assert not context.remove(at, -1)  # states are kept behind the batch's rows, not in front of them
    assert context.remove(at + 1, -1)  # two of them
    assert not context.remove(at, -1)  # what was kept is used
    other.say([20])
    chat.at = other.at
    assert relative_rms(chat.say([30]), other.say([30])) <= EXACT
    assert_goes_on_alike(chat, other)


def drafted(talker: Talker, context: Context, *, seq: int = 0) -> Chat:
    """Two of three rows that were proposed are taken back."""
    chat = asked(talker, context, seq=seq)
    chat.say([10])
    at = chat.at
    assert context.rows([Row(seq, at + i, 20 + i) for i in range(3)], logits=range(3)) == 0
    assert context.remove(at + 1, -1, seq=seq)
    chat.next_text([20])
    return chat


def told(talker: Talker, context: Context, *, seq: int = 0) -> Chat:
    """As drafted(), of somebody who knew."""
    chat = asked(talker, context, seq=seq)
    chat.say([10])
    chat.say([20])
    return chat


def test_rows_that_came_one_by_one_are_not_taken_back(talker: Talker, make: Make) -> None:
    """The last batch alone has left states, and none in front of its first row."""
    context = make(talker.spec(), n_rs_seq=FEW)
    chat = asked(talker, context)
    for token in (10, 11, 12):
        chat.say([token])
    assert not context.remove(chat.at - 1, -1)
    assert not context.remove(chat.at - 2, -1)
    assert context.last_position() == chat.at - 1


def test_rows_that_the_later_layers_had_in_several_batches_are_not_taken_back(
    talker: Talker, make: Make
) -> None:
    """There the last of 33 that waited came alone. The picture is gone, and the question is text like any other."""
    context = make(talker.spec(), n_rs_seq=FEW, n_ubatch=8)
    chat = Chat(talker, context)
    chat.tell([1, 2, 3])
    at_picture = chat.at
    chat.show()
    at_question = chat.at
    chat.say([*range(10, 23)])
    assert context.remove(at_picture, at_question)
    assert not context.remove(chat.at - 2, -1)


@pytest.mark.parametrize("is_copy", [False, True])
def test_states_behind_earlier_rows_are_neither_saved_nor_shared(
    talker: Talker, make: Make, is_copy: bool
) -> None:
    context, other = make(talker.spec(), n_rs_seq=FEW, n_seq_max=2), make(talker.spec(), n_rs_seq=FEW)
    chat = asked(talker, context)
    assert context.rows([Row(0, chat.at + i, 20 + i) for i in range(3)], logits=range(3)) == 0
    if is_copy:
        context.copy(0, 1)
        assert not context.remove(chat.at + 1, -1, seq=1)
        assert not context.remove(chat.at + 1, -1, seq=0)  # it would go back for both
    else:
        state = context.save_sequence(0)
        assert other.load_sequence(state, 0) == len(state)
        assert not other.remove(chat.at + 1, -1)
        assert context.remove(chat.at + 1, -1)


def test_a_copy_of_what_was_taken_back_is_without_it(talker: Talker, make: Make) -> None:
    context, alone = make(talker.spec(), n_rs_seq=FEW, n_seq_max=2), make(talker.spec(), n_rs_seq=FEW)
    chat, expected = drafted(talker, context), told(talker, alone)
    context.copy(0, 1)
    # llama.cpp would end the process at a state that is shared and taken back for one of them
    assert context.save()
    copy = chat.goes_on(context, 1)
    of_copy, of_expected = copy.say([30]), expected.say([30])
    assert relative_rms(of_copy, of_expected) <= EXACT
    assert relative_rms(chat.say([30]), of_expected) <= EXACT
    assert_goes_on_alike(copy, expected)


def test_a_state_is_without_what_was_taken_back(talker: Talker, make: Make) -> None:
    """Loaded over a sequence of which something else was taken back."""
    context, other, alone = (make(talker.spec(), n_rs_seq=FEW) for _ in range(3))
    chat, expected = drafted(talker, context), told(talker, alone)
    of_other = asked(talker, other, seed=2)
    assert other.rows([Row(0, of_other.at + i, 50 + i) for i in range(2)], logits=range(2)) == 0
    assert other.remove(of_other.at + 1, -1)
    state = context.save_sequence(0)
    assert other.load_sequence(state, 0) == len(state)
    assert_goes_on_alike(chat.goes_on(other), expected)


def test_a_sequence_that_comes_where_one_was_taken_back_is_as_alone(talker: Talker, make: Make) -> None:
    """The other one is forgotten by seq_keep(), or replaced by a copy."""
    for replaced in (False, True):
        context, alone = make(talker.spec(), n_rs_seq=FEW, n_seq_max=2), make(talker.spec(), n_rs_seq=FEW)
        chat = asked(talker, context, seed=3)
        drafted(talker, context, seq=1)
        if replaced:
            context.copy(0, 1)
            new = chat.goes_on(context, 1)
        else:
            context.keep_only(0)
            new = asked(talker, context, seq=1, seed=3)
        assert_goes_on_alike(new, asked(talker, alone, seed=3))


def test_a_question_that_brought_tokens_back_is_not_taken_back(talker: Talker, make: Make) -> None:
    """They have gone into the later layers' states in front of it."""
    context = make(talker.spec(shared=",recall=0.2"), n_rs_seq=FEW)
    chat = asked(talker, context)
    chat.say(SECOND)
    assert context.report().n_recalled > 0
    assert not context.remove(chat.at - 1, -1)


def test_states_for_more_rows_than_a_batch_has_are_refused(talker: Talker) -> None:
    """llama.cpp would end the process in the first llama_decode()."""
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_rs_seq = 256, 256, FEW + 1, FEW
    with logged() as log:
        assert not llama.llama_init_from_model(talker.model.pointer, params)
    assert f"n_rs_seq = {FEW} needs an n_ubatch of at least {FEW + 2}: it is {FEW + 1}" in "".join(log)


def test_a_question_is_not_taken_back_though_states_are_kept(talker: Talker, make: Make) -> None:
    """Its picture's rows, which it chose from, have gone into the states."""
    context = make(talker.spec(), n_rs_seq=FEW)
    chat = asked(talker, context)
    kept = context.kept()
    assert not context.remove(chat.at - 1, -1)
    assert context.kept() == kept


def test_a_picture_s_rows_of_one_time_are_not_taken_for_one(tmp_path: Path) -> None:
    with talker_of(tmp_path, "qwen35") as talker, contexts(talker.model, n_ctx=256, n_rs_seq=FEW) as make:
        context = make(talker.spec())
        chat = seen(talker, context)
        assert not context.remove(context.last_position(), -1)
        assert context.report().n_pending == PICTURE
        assert np.isfinite(chat.say(QUESTION)).all()


#
# what fails leaves nothing
#


def test_a_flush_stopped_behind_any_node_can_be_repeated(talker: Talker, make: Make) -> None:
    stopped, undisturbed = make(talker.spec(2)), make(talker.spec(2))
    chat, other = seen(talker, stopped), seen(talker, undisturbed)
    for question in (QUESTION, SECOND):
        for c in (chat, other):
            c.context.tokens(question, c.at)
            c.next_text(question)
        if stopped.report().n_pending:
            assert flush_after_stops(stopped) > 20
        np.testing.assert_array_equal(read(stopped), read(undisturbed))
    np.testing.assert_array_equal(go_on(chat), go_on(other))


def decode_after_stops(context: Context, part: Part, *, seq: int = 0) -> int:
    """Stopped behind every third node until it is not; how often it was."""
    before = facts(context, seq), context.report().n_pending, sum(context.report().kv_bytes_used)
    stops = 0
    while True:
        with context.aborting(after=3 * stops):
            status = decode_part(context, part, seq=seq)
        if status == 0:
            return stops
        assert status == ABORTED
        assert (
            facts(context, seq),
            context.report().n_pending,
            sum(context.report().kv_bytes_used),
        ) == before
        stops += 1


def test_what_is_stopped_in_the_first_layers_can_be_repeated(talker: Talker, make: Make) -> None:
    """A picture, in several ubatches where its rows have one time, and a question behind it."""
    n_ubatch = 16 if talker.arch == "qwen35" else 64
    stopped, undisturbed = (make(talker.spec(), n_ubatch=n_ubatch) for _ in range(2))
    chat, other = Chat(talker, stopped), Chat(talker, undisturbed)
    for c in (chat, other):
        c.tell([1, 2, 3])
    assert decode_after_stops(stopped, chat.next_picture()) > 5
    other.show()
    assert decode_after_stops(stopped, chat.next_text(QUESTION)) > 5
    np.testing.assert_array_equal(read(stopped), other.say(QUESTION))
    np.testing.assert_array_equal(go_on(chat), go_on(other))


def test_of_a_picture_in_two_calls_the_second_of_which_fails_nothing_stays(tmp_path: Path) -> None:
    """Its rows have one time: the state in front of the first is not known any more."""
    with talker_of(tmp_path, "qwen35") as talker, contexts(talker.model, n_ctx=256) as make:
        context = make(talker.spec())
        chat = Chat(talker, context)
        chat.tell([1, 2, 3])
        whole = chat.next_picture()
        halves = [Part(whole.rows[i:j], whole.positions[:, i:j]) for i, j in ((0, 16), (16, PICTURE))]
        assert decode_part(context, halves[0]) == 0
        with context.aborting(after=5):
            assert decode_part(context, halves[1]) == ABORTED
        assert (context.last_position(), context.report().n_pending) == (-1, 0)
        logits = asked(talker, context).say([9])
        np.testing.assert_array_equal(logits, asked(talker, make(talker.spec())).say([9]))


def test_a_failed_batch_of_several_sequences_leaves_all_of_them(talker: Talker, make: Make) -> None:
    """Also those that are not in it, whose states may have moved."""
    stopped, undisturbed = (make(talker.spec(), n_seq_max=4) for _ in range(2))
    chats = [[seen(talker, c, seq=seq, seed=seq) for seq in range(4)] for c in (stopped, undisturbed)]
    rows = [Row(seq, chats[0][seq].at + i, 20 + i) for seq in (0, 3) for i in range(3)]
    for after in (0, 10, 30):
        with stopped.aborting(after=after):
            assert stopped.rows(rows) == ABORTED
    for context in (stopped, undisturbed):
        assert context.rows(rows) == 0
    for seq in range(4):
        for c in (chats[0][seq], chats[1][seq]):
            c.at += 3 if seq in (0, 3) else 0
        assert_goes_on_alike(chats[0][seq], chats[1][seq])


def test_a_choice_in_pieces_comes_to_the_same_and_can_be_given_up(talker: Talker, make: Make) -> None:
    """Another sequence is decoded between the pieces; one flight is given up half-way."""
    in_pieces, at_once = (make(talker.spec(2), n_seq_max=2, n_ubatch=16) for _ in range(2))
    chats = [seen(talker, c) for c in (in_pieces, at_once)]
    beside = [asked(talker, c, seq=1, seed=2) for c in (in_pieces, at_once)]
    for chat in chats:
        chat.context.tokens(QUESTION[:-1], chat.at, logits=False)
        chat.next_text(QUESTION[:-1])
    assert in_pieces.flush_piece(0)
    assert in_pieces.flush_piece(0)
    for chat in chats:  # gives up what was computed
        chat.context.tokens(QUESTION[-1:], chat.at)
        chat.next_text(QUESTION[-1:])
    n = 1
    logits: list[list[np.ndarray]] = [[], []]
    while in_pieces.flush_piece(0):
        logits[0].append(beside[0].say([n]))
        n += 1
    assert n > 2
    expected = read(at_once)
    assert relative_rms(read(in_pieces), expected) <= EXACT
    for i in range(1, n):
        logits[1].append(beside[1].say([i]))
    for a, b in zip(*logits, strict=True):
        assert relative_rms(a, b) <= EXACT
    assert_goes_on_alike(*chats)


#
# sequences
#


def test_interleaved_sequences_are_each_as_alone(talker: Talker, make: Make) -> None:
    context = make(talker.spec(2), n_seq_max=3)
    alone = [make(talker.spec(2)) for _ in range(3)]
    chats = [seen(talker, context, seq=seq, seed=seq) for seq in range(3)]
    others = [seen(talker, c, seed=seq) for seq, c in enumerate(alone)]
    expected = [other.say(QUESTION) for other in others]
    rows = [Row(seq, chats[seq].at + i, token) for seq in range(3) for i, token in enumerate(QUESTION)]
    assert context.rows(rows) == 0
    for seq, chat in enumerate(chats):
        assert relative_rms(read(context, 5 * seq + 4), expected[seq]) <= EXACT
        assert context.kept(seq=seq) == alone[seq].kept()
        chat.next_text(QUESTION)
    for token in (10, 11):  # all generate in one batch
        assert context.rows([Row(chat.seq, chat.at, token) for chat in chats], logits=range(3)) == 0
        for seq, chat in enumerate(chats):
            chat.next_text([token])
            assert relative_rms(read(context, seq), others[seq].say([token])) <= EXACT
    for chat, other in zip(chats, others, strict=True):
        assert_goes_on_alike(chat, other)


@pytest.mark.parametrize("talk", [seen, asked])
def test_a_copy_goes_its_own_way(talker: Talker, make: Make, talk) -> None:
    context, alone, other = make(talker.spec(2), n_seq_max=2), make(talker.spec(2)), make(talker.spec(2))
    chat = talk(talker, context)
    context.copy(0, 1)
    copy = chat.goes_on(context, 1)
    expected, of_copy = talk(talker, alone), talk(talker, other)
    for c in (chat, expected):
        assert np.isfinite(c.say(SECOND)).all()
    assert_goes_on_alike(copy, of_copy)
    assert context.remove(-1, -1, seq=1)
    assert_goes_on_alike(chat, expected)


def test_a_copy_replaces_what_was_there(talker: Talker, make: Make) -> None:
    context, alone = make(talker.spec(2), n_seq_max=2), make(talker.spec(2))
    chat = asked(talker, context)
    answered(talker, context, seq=1)
    context.copy(0, 1)
    assert facts(context, 1) == facts(context, 0)
    assert_goes_on_alike(chat.goes_on(context, 1), asked(talker, alone))


def test_a_part_of_a_sequence_is_not_copied(talker: Talker, make: Make) -> None:
    """There is one state of all of it."""
    context, alone = make(talker.spec(), n_seq_max=2, n_rs_seq=FEW), make(talker.spec(), n_rs_seq=FEW)
    chat = asked(talker, context)
    with logged() as log:
        context.copy(0, 1, -1, chat.at - 1)
        context.copy(0, 1, 1, -1)
    assert "".join(log).count("a part of sequence 0 cannot be copied") == 2
    assert context.last_position(seq=1) == -1
    assert_goes_on_alike(chat, asked(talker, alone))


def test_a_copy_outlives_the_original(talker: Talker, make: Make) -> None:
    context, alone = make(talker.spec(), n_seq_max=3), make(talker.spec())
    chat = asked(talker, context)
    context.copy(0, 2)
    context.keep_only(2)
    assert context.last_position(seq=0) == -1
    assert_goes_on_alike(chat.goes_on(context, 2), asked(talker, alone))


#
# saved states
#


def question_waits(talker: Talker, context: Context, *, seq: int = 0) -> Chat:
    chat = seen(talker, context, seq=seq)
    chat.tell(QUESTION[:3])
    return chat


def answered(talker: Talker, context: Context, *, seq: int = 0) -> Chat:
    chat = asked(talker, context, seq=seq)
    chat.say([10])
    chat.say([11])
    return chat


def second_picture_waits(talker: Talker, context: Context, *, seq: int = 0) -> Chat:
    chat = answered(talker, context, seq=seq)
    chat.show(2)
    return chat


TALKS = [seen, question_waits, asked, answered, second_picture_waits]
WITH_RECALL = ",recall=0.2"


@pytest.mark.parametrize("talk", TALKS)
def test_a_whole_state_goes_on_in_a_fresh_context(talker: Talker, make: Make, talk) -> None:
    spec = talker.spec(2, shared=WITH_RECALL)
    context, fresh = make(spec), make(spec)
    chat = talk(talker, context)
    state = context.save()
    assert fresh.load(state) == len(state)
    assert facts(fresh) == facts(context)
    assert list(fresh.report().kv_bytes_used) == list(context.report().kv_bytes_used)
    assert_goes_on_alike(chat.goes_on(fresh), chat)


@pytest.mark.parametrize("talk", TALKS)
def test_a_sequence_goes_on_under_another_number(talker: Talker, make: Make, talk) -> None:
    spec = talker.spec(2, shared=WITH_RECALL)
    context, other, alone = make(spec), make(spec, n_seq_max=4), make(spec)
    chat = talk(talker, context)
    beside, as_alone = (asked(talker, c, seed=5) for c in (other, alone))
    seen(talker, other, seq=3, seed=6)  # goes
    state = context.save_sequence(0)
    assert other.load_sequence(state, 3) == len(state)
    assert facts(other, 3) == facts(context)
    assert_goes_on_alike(chat.goes_on(other, 3), chat)
    assert_goes_on_alike(beside, as_alone)


@pytest.mark.parametrize("partial", [False, True])
def test_a_state_over_a_longer_talk_leaves_nothing_of_it(talker: Talker, make: Make, partial: bool) -> None:
    """The later layers had seen nothing when it was saved."""
    spec = talker.spec(2)
    context, fresh = make(spec), make(spec)
    chat, other = Chat(talker, context), Chat(talker, fresh)
    for c in (chat, other):
        c.show()
    state = context.save_sequence(0, partial=partial)
    later = chat.goes_on(context)
    later.say(QUESTION)
    later.say([10])
    assert context.load_sequence(state, 0, partial=partial) == len(state)
    assert list(context.report().kv_bytes_used) == list(fresh.report().kv_bytes_used)
    assert_goes_on_alike(chat, other)


@pytest.mark.parametrize("talk", TALKS)
def test_a_context_goes_back_to_its_states(talker: Talker, make: Make, talk) -> None:
    """A checkpoint: keys and values stay in the context, states and what waits are in it."""
    spec = talker.spec(2, shared=WITH_RECALL)
    context, fresh = make(spec), make(spec)
    chat, other = talk(talker, context), talk(talker, fresh)
    before = facts(context), context.report().n_pending
    expected = go_on(other)
    state = context.save_sequence(0, partial=True)
    assert len(state) < len(context.save_sequence(0))
    later = chat.goes_on(context)
    for _ in range(2):  # it serves more than once
        later.say([40, 41, 42, 43, 44, 45])
        later.say([46])
        assert context.load_sequence(state, 0, partial=True) == len(state)
        assert (facts(context), context.report().n_pending) == before
        later = chat.goes_on(context)
        for logits, of_fresh in zip(go_on(later), expected, strict=True):
            assert relative_rms(logits, of_fresh) <= EXACT


def test_going_back_without_drop_is_stock_to_the_bit(talker: Talker, make: Make) -> None:
    results = []
    for context in (make(), make(talker.spec().replace("drop=0.5", "drop=0"))):
        chat = answered(talker, context)
        state = context.save_sequence(0, partial=True)
        chat.goes_on(context).say(SECOND)
        assert context.load_sequence(state, 0, partial=True) == len(state)
        assert context.remove(context.last_position() + 1, -1)
        results.append(go_on(chat))
    np.testing.assert_array_equal(*results)


def test_a_state_that_says_what_cannot_be_is_refused(talker: Talker, make: Make) -> None:
    """Cut off anywhere, or with other layers: nothing half-read stays."""
    context, other = make(talker.spec(2)), make(talker.spec(2), n_seq_max=2)
    answered(talker, context)
    state = context.save_sequence(0)
    for end in (7, 40, len(state) // 3, len(state) // 2, len(state) - 1):
        assert other.load_sequence(state[:end], 1) == 0
        assert other.last_position(seq=1) == -1
    assert make(talker.spec()).load_sequence(state, 0) == 0
    assert other.load_sequence(state, 1) == len(state)


@pytest.mark.parametrize("n", [0, 2, 3, 2**32 - 1])
def test_a_sequence_has_one_state(talker: Talker, make: Make, n: int) -> None:
    context, other = make(talker.spec()), make(talker.spec(), n_seq_max=2)
    answered(talker, context)
    state = bytearray(context.save_sequence(0))
    # how many, position, sequences; not transposed, layers
    at = state.index(struct.pack("<IiIII", 1, context.last_position(), 0, 0, talker.model.n_layer))
    struct.pack_into("<I", state, at, n)
    assert other.load_sequence(bytes(state), 1) == 0
    assert other.last_position(seq=1) == -1
    assert_goes_on_alike(asked(talker, other, seq=1), asked(talker, make(talker.spec())))


def test_a_refused_state_leaves_no_numbers_behind(talker: Talker, make: Make) -> None:
    """A new state begins as an old one times 0: what is no number would stay none."""
    context, other = make(talker.spec()), make(talker.spec())
    chat = Chat(talker, context)
    chat.tell([1, 2, 3])
    nan = chat.next_picture()
    assert decode_part(context, Part(np.full_like(nan.rows, np.nan), nan.positions)) == 0
    state = context.save_sequence(0)
    assert other.load_sequence(state[:-1], 0) == 0
    assert_goes_on_alike(asked(talker, other), asked(talker, make(talker.spec())))
