"""No step is longer than a batch: what is computed of a large picture comes in pieces, between which others get their
tokens, and the result is the same."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyfastv import _native

import random_mmproj
from c_api import ABORTED, OK, Context, Model, contexts, read
from decoding import random_llama
from masked_reference import relative_rms
from random_gguf import WIDTH

N, UBATCH = 96, 16  # visual tokens; rows of a batch
QUESTION = [40, 41, 42, 43, 44, 45]
AT_QUESTION = 3 + N
END = AT_QUESTION + len(QUESTION)
TWO_CUTS = "k=1,drop=0.25,score=last;k=2,drop=0.5,score=question-max,pick=cover,weigh"
NOISE = 5e-4  # relative rms: cells of F16, added in another order

Make = Callable[..., Context]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with random_llama(tmp_path_factory.mktemp("model")) as model:
        yield model


@pytest.fixture
def make(model: Model) -> Iterator[Make]:
    with contexts(model, n_ctx=512, n_ubatch=UBATCH, n_seq_max=3) as make:
        yield make


def ask(context: Context, seq: int = 0) -> Context:
    """A picture and a question in a sequence, whose logits are asked for."""
    rows = np.random.default_rng(seq).normal(size=(N, WIDTH)).astype(np.float32)
    assert context.tokens([1, 2, 3], 0, logits=False, seq=seq) == OK
    context.begin_picture("a", 12, 8)
    assert context.picture(rows, 3, seq=seq) == OK
    assert context.tokens(QUESTION, AT_QUESTION, seq=seq) == OK
    return context


def finish(context: Context, seq: int = 0) -> int:
    """The pieces that are left."""
    n = 1
    while context.flush_piece(seq):
        n += 1
    return n


def test_a_flush_in_pieces_beside_another_sequence_is_as_alone(make: Make) -> None:
    expected = ask(make(TWO_CUTS))
    assert expected.flush() == OK

    def talk(context: Context, i: int) -> np.ndarray:
        assert context.tokens([60 + i], i, seq=1) == OK
        return read(context)

    context, alone = ask(make(TWO_CUTS)), make(TWO_CUTS)
    n = 1
    while context.flush_piece(0):
        assert relative_rms(talk(context, n), talk(alone, n)) < NOISE
        n += 1
    # 72 and 48 tokens stay, and 6 of text
    assert n == -(-(72 + 6) // UBATCH) + -(-(48 + 6) // UBATCH)
    assert [context.kept(cut) for cut in (0, 1)] == [expected.kept(cut) for cut in (0, 1)]
    assert relative_rms(read(context), read(expected)) < NOISE
    # what each holds is whole
    assert relative_rms(talk(context, n), talk(alone, n)) < NOISE
    for each in (context, expected):
        assert each.tokens([70], END) == OK
    assert relative_rms(read(context), read(expected)) < NOISE
    assert context.flush_piece(0) is False  # nothing waits


def test_without_others_pieces_are_the_flush_to_the_bit(make: Make) -> None:
    expected, context = ask(make(TWO_CUTS)), ask(make(TWO_CUTS))
    expected.flush()
    finish(context)
    np.testing.assert_array_equal(read(context), read(expected))


def decode_more(context: Context) -> None:
    assert context.tokens([50], END) == OK


def ask_last_word_again(context: Context) -> None:
    assert context.remove(END - 1, END)
    assert context.tokens(QUESTION[-1:], END - 1) == OK


def see_another(context: Context) -> None:
    ask(context, seq=1)
    context.flush_piece(1)
    ask_last_word_again(context)


def load(context: Context) -> None:
    state = context.save_sequence(0)
    assert context.load_sequence(state, 0) > 0
    ask_last_word_again(context)


CHANGES: dict[str, Callable[[Context], object]] = {
    "a token": decode_more,
    "a flush": lambda context: context.flush(),
    "its end removed": ask_last_word_again,
    "copied": lambda context: context.copy(0, 2),
    "copied to": lambda context: context.copy(2, 0),
    "kept alone": lambda context: context.keep_only(0),
    "shifted": lambda context: context.shift(0, -1, 5),
    "saved": lambda context: context.save(),
    "loaded": load,
    "another one's piece": see_another,
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("n_pieces", [1, 4, 7])
def test_what_happens_to_a_sequence_takes_its_pieces_back(make: Make, name: str, n_pieces: int) -> None:
    results = []
    for n in (0, n_pieces):
        context = ask(make(TWO_CUTS))
        for _ in range(n):
            assert context.flush_piece(0)
        CHANGES[name](context)
        assert context.flush() == OK
        results.append(
            (read(context), context.kept(0), context.kept(1), list(context.report().kv_bytes_used))
        )
    (logits, *rest), (again, *others) = results
    assert rest == others
    assert relative_rms(again, logits) < NOISE


def test_a_copy_has_nothing_of_the_pieces(make: Make) -> None:
    context, expected = ask(make(TWO_CUTS)), ask(make(TWO_CUTS))
    for _ in range(7):
        assert context.flush_piece(0)
    for each in (context, expected):
        each.copy(0, 1)
        assert each.tokens([50], END, seq=1) == OK
    assert relative_rms(read(context), read(expected)) < NOISE
    assert context.kept(1, seq=1) == expected.kept(1, seq=1)


def test_a_cleared_context_has_nothing_of_them(make: Make) -> None:
    context = ask(make(TWO_CUTS))
    assert context.flush_piece(0)
    context.clear()
    assert context.flush_piece(0) is False
    assert finish(ask(context)) == 9


@pytest.mark.parametrize("n_pieces", [0, 3, 6])
def test_a_piece_that_is_stopped_can_be_repeated(make: Make, n_pieces: int) -> None:
    """All of them are taken back."""
    expected, context = ask(make(TWO_CUTS)), ask(make(TWO_CUTS))
    expected.flush()
    for _ in range(n_pieces):
        assert context.flush_piece(0)
    with context.aborting(after=3):
        assert context.flush_piece_status(0) == (ABORTED, False)
    assert context.report().n_pending == N + len(QUESTION)
    assert finish(context) == 9
    assert relative_rms(read(context), read(expected)) < NOISE


def test_a_picture_in_pieces_is_one(make: Make) -> None:
    """Beside another one's text."""
    rows = np.random.default_rng(0).normal(size=(N, WIDTH)).astype(np.float32)
    whole, pieces = make(TWO_CUTS), make(TWO_CUTS)
    whole.begin_picture("a", 12, 8)
    assert whole.picture(rows, 0) == OK
    pieces.begin_picture("a", 12, 8)
    for first in range(0, N, UBATCH):
        if first > 0:
            assert pieces.tokens([5, 6], first // UBATCH * 2 - 2, logits=False, seq=1) == OK
            pieces.continue_picture()
        assert pieces.picture(rows[first : first + UBATCH], first) == OK
    assert pieces.grids() == whole.grids() == [(0, 12, 8)]
    for each in (whole, pieces):
        assert each.tokens(QUESTION, N) == OK
    assert relative_rms(read(pieces), read(whole)) < NOISE
    assert pieces.kept(1) == whole.kept(1)


# the engine

PICTURE = np.random.default_rng(5).integers(0, 256, (168, 224, 3), dtype=np.uint8)  # 64 tokens
ASKED = "*\nWhich of them is it, and what is left of it?:"
WORD: dict[str, Any] = {"max_tokens": 4, "grammar": "root ::= [a-z ] root"}
ENDLESS: dict[str, Any] = {"grammar": "root ::= [a-z ] root"}
RULE = "k=2,drop=0.25,score=question-max"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_native.Engine]:
    model, mmproj = random_mmproj.write_pair(tmp_path_factory.mktemp("pair"), "LLaVA")
    engine = _native.Engine(
        model_path=str(model), mmproj_path=str(mmproj), n_slots=2, n_ctx=512, n_ubatch=UBATCH, n_threads=1,
        flash_attn="off", encoder_cache_bytes=0,
    )  # fmt: skip
    engine.set_fastv(RULE)
    yield engine
    engine.close()


def start(engine: _native.Engine, text: str, sampling: dict[str, Any], **options: Any) -> int:
    images = [PICTURE] if "*" in text else []
    text = text.replace("*", engine.media_marker)
    return engine.start(engine.prepare(text, images, ["p"] * len(images), True, **options, **sampling))


def answer(engine: _native.Engine, number: int) -> tuple[bytes, list[list[int]], int]:
    """What came of a request, what it kept, and the steps to its first token."""
    text, steps, first = b"", 0, 0
    while True:
        steps += 1
        for event in engine.step():
            if event["id"] == number:
                first = first or steps
                text += event["bytes"]
                assert event["error"] is None
                if event["finish"]:
                    return text, [kept.tolist() for kept in event["kept"]], first


def test_others_get_a_token_between_the_pieces_of_a_picture(engine: _native.Engine) -> None:
    engine.reset()
    expected = answer(engine, start(engine, ASKED, WORD))
    engine.reset()
    talking = start(engine, "Hello", ENDLESS)
    engine.step()
    number, steps, events = start(engine, ASKED, WORD), 0, []
    while not events:
        each = engine.step()
        assert [event["id"] for event in each].count(talking) == 1
        events = [event for event in each if event["id"] == number]
        steps += 1
    text = events[0]["bytes"]
    while not events[-1]["finish"]:
        events = [event for event in engine.step() if event["id"] == number]
        text += events[-1]["bytes"]
    # the encoder, 64 rows of the picture, the text with the first piece of a flush, and the others: 48 rows stay
    n_text = events[-1]["report"].prompt_tokens - 64 - 1
    later = -(-(48 + n_text) // UBATCH)
    assert steps == 1 + 64 // UBATCH + -(-n_text // UBATCH) + later - 1
    assert steps + 1 == expected[2]  # BOS, which the other one has, too
    assert (text, [kept.tolist() for kept in events[-1]["kept"]]) == expected[:2]
    engine.reset()


def test_a_request_can_be_cancelled_between_any_two_steps(engine: _native.Engine) -> None:
    engine.reset()
    expected = answer(engine, start(engine, ASKED, WORD))
    for n in range(expected[2]):
        engine.reset()
        number = start(engine, ASKED, WORD)
        assert all(engine.step() == [] for _ in range(n))
        engine.cancel(number)
        assert [event["finish"] for event in engine.step()] == ["cancelled"]
        # it goes on from what the slot holds
        again = answer(engine, start(engine, ASKED, WORD))
        assert again[:2] == expected[:2]
        # and a question in place of the one that was cancelled is as if it had not been asked
        other = answer(engine, start(engine, ASKED.replace("left", "right"), WORD))
        engine.reset()
        assert other[:2] == answer(engine, start(engine, ASKED.replace("left", "right"), WORD))[:2]


def test_two_large_pictures_at_once_are_each_as_alone(engine: _native.Engine) -> None:
    texts = [ASKED, ASKED.replace("left", "in front")]
    expected = []
    for text in texts:
        engine.reset()
        expected.append(answer(engine, start(engine, text, WORD))[:2])
    engine.reset()
    numbers = [start(engine, text, WORD) for text in texts]
    found = {number: (b"", None) for number in numbers}
    while not engine.idle:
        for event in engine.step():
            kept = event.get("kept") and [each.tolist() for each in event["kept"]]
            found[event["id"]] = found[event["id"]][0] + event["bytes"], kept
    assert [found[number] for number in numbers] == expected


def test_a_prompt_that_ends_with_a_picture_flushes_its_own_rows(tmp_path: Path) -> None:
    """Those of the other slot wait for their question."""
    model, mmproj = random_mmproj.write_pair(tmp_path, "LLaVA")
    engine = _native.Engine(
        model_path=str(model), mmproj_path=str(mmproj), n_slots=2, n_ctx=512, n_ubatch=UBATCH, n_threads=1,
        flash_attn="off",
    )  # fmt: skip
    engine.set_fastv(RULE)
    expected = answer(engine, start(engine, ASKED, WORD))[:2]
    engine.reset()
    number = start(engine, ASKED, WORD)
    while engine.step() == [] and engine.report(number).stage0_ms == 0:
        pass
    marker = engine.media_marker
    engine.prefill(f"x{marker}", [PICTURE], ["p"], None, True, 1)
    assert answer(engine, number)[:2] == expected
    engine.close()


# reducers


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("spec", ["cdpruner,keep=6000", "divprune,keep=6000", "merge,keep=1000"])
def test_a_reducer_is_interrupted_while_it_computes(spec: str) -> None:
    """Python's handlers run meanwhile: behind it, all signals would be one."""
    handled = 0

    def interrupt(number: int, frame: object) -> None:
        nonlocal handled
        handled += 1
        if handled == 3:
            raise Interrupted

    rng = np.random.default_rng(0)
    rows, question = rng.normal(size=(12000, 256)).astype(np.float32), rng.normal(size=256).astype(np.float32)
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        with pytest.raises(Interrupted):
            _native.reduce(rows, spec, question=question)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
