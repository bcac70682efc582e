"""Gemma 4 E: what layers add of a token goes with its row through the stages, and layers that share caches see the rows
that entered their stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import pyfastv
from pyfastv.models.header import read_model

import random_gguf
from c_api import UNSUPPORTED, Context, Row, contexts, last_error, llama, read
from decoding import PICTURE
from masked_reference import relative_rms
from talks import OTHER, QUESTION, SECOND, Chat, Talker, talker_of
from test_cancel import flush_after_stops

# relative rms: ggml rounds the input and the output of GELU to float16, twice a layer; a wrong row comes to more than 0.1
NOISE = 8e-3
EXACT = 1e-3  # the same computations, in other cells or by other numbers of rows
ROW_BYTES = 4 * (random_gguf.WIDTH + random_gguf.PER_LAYER * random_gguf.n_layer("gemma4 e"))

Make = Callable[..., Context]
Talk = Callable[..., Chat]


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Talker]:
    folder: Path = tmp_path_factory.mktemp("gemma")
    with talker_of(folder, "gemma4 e") as talker:
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


def question_waits(talker: Talker, context: Context, *, seq: int = 0) -> Chat:
    chat = seen(talker, context, seq=seq)
    chat.tell(QUESTION[:3])
    return chat


def asked(talker: Talker, context: Context, *, seq: int = 0, seed: int = 1) -> Chat:
    chat = seen(talker, context, seq=seq, seed=seed)
    chat.say(QUESTION)
    return chat


def recalled(talker: Talker, context: Context, *, seq: int = 0) -> Chat:
    """And another picture, which waits."""
    chat = asked(talker, context, seq=seq)
    chat.say([10])
    chat.say(SECOND)
    chat.show(2)
    return chat


def kept(context: Context, seq: int = 0) -> list[list[int]]:
    return [context.kept(cut, seq=seq) for cut in range(context.report().n_stages - 1)]


def assert_goes_on_alike(a: Chat, b: Chat) -> None:
    for words in (OTHER, [70], [71], SECOND):
        assert relative_rms(a.say(words), b.say(words)) <= EXACT
    assert kept(a.context, a.seq) == kept(b.context, b.seq)


@pytest.mark.parametrize("n_cuts", [1, 2])
def test_a_long_conversation_is_the_reference(talker: Talker, make: Make, n_cuts: int) -> None:
    """Two pictures, with text between, before the first question; another in a later turn. Nothing is recalled."""
    context = make(talker.spec(n_cuts, shared=",recall=0"), n_ubatch=32)
    chat = Chat(talker, context)
    chat.tell([1, 2, 3])
    chat.show(1)
    chat.tell([20, 21])
    chat.show(2)
    for turn in (QUESTION, [10], [11], SECOND, [12]):
        assert relative_rms(chat.say(turn), chat.expected(kept(context))) <= NOISE
    chat.show(3)
    logits = chat.say(QUESTION)
    assert relative_rms(logits, chat.expected(kept(context))) <= NOISE
    assert relative_rms(logits, chat.expected([])) > 10 * NOISE
    assert [len(rows) for rows in kept(context)] == [3 * PICTURE // 2, 3 * PICTURE // 4][:n_cuts]


def test_what_is_recalled_brings_what_its_layers_add(talker: Talker, make: Make) -> None:
    context = make(talker.spec(shared=",recall=0.2"))
    chat = asked(talker, context)
    first = context.kept()
    logits = chat.say(SECOND)
    back = sorted(set(context.kept()) - set(first))
    assert 0 < len(back) <= 0.2 * PICTURE
    assert relative_rms(logits, chat.expected([context.kept()], back)) <= NOISE


def test_all_of_a_picture_may_be_dropped(talker: Talker, make: Make) -> None:
    chat = seen(talker, make("k=2,drop=1"))
    assert relative_rms(chat.say(QUESTION), chat.expected([[]])) <= NOISE


def test_a_question_that_is_taken_back_leaves_nothing(talker: Talker, make: Make) -> None:
    spec = talker.spec(2, shared=",recall=0.2")
    context, untouched = make(spec), make(spec)
    chat, other = asked(talker, context), asked(talker, untouched)
    at = chat.at
    for words in (SECOND, QUESTION):  # recalls something
        chat.say(words)
    assert context.remove(at, -1)
    chat.at = at
    assert context.report().archive_bytes == untouched.report().archive_bytes
    assert_goes_on_alike(chat, other)


def test_a_flush_stopped_behind_any_node_can_be_repeated(talker: Talker, make: Make) -> None:
    stopped, undisturbed = make(talker.spec(2)), make(talker.spec(2))
    chats = [seen(talker, context) for context in (stopped, undisturbed)]
    for chat in chats:
        chat.context.tokens(QUESTION, chat.at)
        chat.next_text(QUESTION)
    assert flush_after_stops(stopped) > 20
    np.testing.assert_array_equal(read(stopped), read(undisturbed))
    assert_goes_on_alike(*chats)


def test_interleaved_sequences_are_each_as_alone(talker: Talker, make: Make) -> None:
    context = make(talker.spec(2), n_seq_max=3)
    alone = [make(talker.spec(2)) for _ in range(3)]
    chats = [seen(talker, context, seq=seq, seed=seq) for seq in range(3)]
    others = [seen(talker, c, seed=seq) for seq, c in enumerate(alone)]
    rows = [Row(seq, chats[seq].at + i, token) for seq in range(3) for i, token in enumerate(QUESTION)]
    assert context.rows(rows) == 0
    n = len(QUESTION)
    for seq, (chat, other) in enumerate(zip(chats, others, strict=True)):
        assert relative_rms(read(context, n * (seq + 1) - 1), other.say(QUESTION)) <= EXACT
        assert context.kept(seq=seq) == alone[seq].kept()
        chat.next_text(QUESTION)
    for chat, other in zip(chats, others, strict=True):
        assert_goes_on_alike(chat, other)


def test_a_copy_goes_its_own_way(talker: Talker, make: Make) -> None:
    context, alone = make(talker.spec(2), n_seq_max=2), make(talker.spec(2))
    chat, other = seen(talker, context), seen(talker, alone)
    context.copy(0, 1)
    copy = chat.goes_on(context, 1)
    chat.say(QUESTION)
    assert context.remove(-1, -1)
    assert_goes_on_alike(copy, other)


@pytest.mark.parametrize("talk", [seen, question_waits, asked, recalled])
def test_a_saved_state_has_what_the_layers_add(talker: Talker, make: Make, talk: Talk) -> None:
    """Nothing is recalled: a state has the last windows alone, and what comes back would look further."""
    spec = talker.spec(2, shared=",recall=0")
    context, whole, sequence = make(spec), make(spec), make(spec, n_seq_max=2)
    chat = talk(talker, context)
    state, of_sequence = context.save(), context.save_sequence(0)
    assert whole.load(state) == len(state)
    assert sequence.load_sequence(of_sequence, 1) == len(of_sequence)
    assert whole.report().archive_bytes == context.report().archive_bytes
    copies = [chat.goes_on(whole), chat.goes_on(sequence, 1)]
    expected = [chat.say(words) for words in (OTHER, [70], SECOND)]
    for copy in copies:
        for words, logits in zip((OTHER, [70], SECOND), expected, strict=True):
            assert relative_rms(copy.say(words), logits) <= EXACT
        assert kept(copy.context, copy.seq) == kept(context)


def test_a_program_goes_back_to_a_state_of_its_windows(talker: Talker, make: Make) -> None:
    """What llama-server keeps of models with sliding windows."""
    context, untouched = (make(talker.spec(), swa_full=False, n_ubatch=16) for _ in range(2))
    chat, other = asked(talker, context), asked(talker, untouched)
    at = chat.at
    state = context.save_sequence(0, partial=True)
    for _ in range(8):
        chat.say(list(range(100, 140)))
    assert context.load_sequence(state, 0, partial=True) == len(state)
    chat.at = at
    assert_goes_on_alike(chat, other)


def test_the_archive_counts_what_the_layers_add(talker: Talker, make: Make) -> None:
    context = make(talker.spec(rule="score=none"))
    seen(talker, context)
    assert context.report().archive_bytes == PICTURE * ROW_BYTES


@pytest.mark.parametrize("rule", ["score=last", "score=random7"])
@pytest.mark.parametrize("layer", [5, 6, 8])
def test_no_cut_may_part_a_cache_from_the_layers_that_share_it(
    talker: Talker, make: Make, rule: str, layer: int
) -> None:
    context = make()
    assert context.attach(f"k={layer},drop=0.5,{rule}") == UNSUPPORTED
    assert "the layers behind it share the KV caches of layers in front of it" in last_error()


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("shared_kv_layers", 9, "shared_kv_layers is 9"),
        ("sliding_window_pattern", [True] * 6 + [True, False] * 2, "layer 5 has no cache of the kind"),
        ("sliding_window_pattern", [False] * 6 + [True, False] * 2, "layer 4 has no cache of the kind"),
    ],
)
def test_a_file_whose_layers_share_what_is_not_there_is_refused(
    tmp_path: Path, key: str, value: int | list[bool], told: str
) -> None:
    random_gguf.write(tmp_path / "broken.gguf", "gemma4 e", {f"attention.{key}": value}, vocab=[])
    with pytest.raises(pyfastv.ModelError, match=told):
        pyfastv.Runner(tmp_path / "broken.gguf", fastv=None, n_ctx=64)


def test_layers_without_a_cache_take_no_memory(talker: Talker, make: Make) -> None:
    stock, staged = make(), make(talker.spec(2))
    assert sum(staged.report().kv_bytes) == stock.report().kv_bytes[0]


def test_the_theory_counts_what_every_row_meets(tmp_path: Path) -> None:
    path = tmp_path / "gemma.gguf"
    random_gguf.write(path, "gemma4 e")
    decoder = read_model(str(path)).decoder
    width, own, n_layer = random_gguf.WIDTH, random_gguf.PER_LAYER, random_gguf.n_layer("gemma4 e")
    q, kv = 128, 64
    of_layer = 2 * width * q + 2 * width * own  # queries and output, and what the layer adds
    assert decoder.attention_weights[1] == of_layer + 2 * width * kv
    assert decoder.attention_weights[9] == of_layer
    # the rows of all layers are made in front of the first
    assert decoder.attention_weights[0] == decoder.attention_weights[1] + width * own * n_layer
    assert decoder.kv_width == (2 * kv,) * 6 + (0,) * 4
    assert decoder.pair_width == (2 * q,) * n_layer
