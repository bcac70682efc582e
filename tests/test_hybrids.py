"""Recurrent layers beside attention: a state has seen the rows that entered its stage, in order, and no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pyfastv import _native
from pyfastv.models import info

import random_gguf
from c_api import OK, UNSUPPORTED, Context, Model, contexts, fastv, last_error, llama
from decoding import PICTURE, decode, prompt_for, small_context
from masked_reference import relative_rms
from talks import QUESTION, SECOND, TWO_CUTS, Chat, Talker, talker_of

ARCHITECTURES = ["qwen35", "qwen35moe", "qwen3next", "lfm2", "lfm2moe", "granitehybrid"]
EXACT = 1e-4  # relative rms

Make = Callable[..., Context]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hybrids")


@pytest.fixture(scope="module", params=TWO_CUTS)
def talker(request: pytest.FixtureRequest, folder: Path) -> Iterator[Talker]:
    with talker_of(folder, request.param) as talker:
        yield talker


@pytest.fixture
def make(talker: Talker) -> Iterator[Make]:
    exact = {"type_k": llama.GGML_TYPE_F32, "type_v": llama.GGML_TYPE_F32}
    with contexts(talker.model, n_ctx=256, **exact) as make:
        yield make


def attends(arch: str, layer: int) -> bool:
    return layer in random_gguf.KINDS[arch].attention


@pytest.fixture(scope="module", params=ARCHITECTURES)
def arch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(folder: Path, arch: str) -> Iterator[Model]:
    path = folder / f"{arch} again.gguf"
    random_gguf.write(path, arch)
    model = Model(path)
    yield model
    model.close()


def everything(context: Context, arch: str) -> np.ndarray:
    """Logits behind a picture's question, and behind two tokens."""
    prompt = prompt_for(arch)
    logits = [decode(context, prompt)]
    end = int(prompt[-1].positions[0, -1]) + 1
    for i in range(2):
        assert context.tokens([7 + i], end + i) == 0
        logits.append(np.array(context.logits()))
    context.close()
    return np.array(logits)


@pytest.mark.parametrize("n_ubatch", [512, 16])
def test_without_drop_it_is_stock_to_the_bit_at_every_layer(arch: str, model: Model, n_ubatch: int) -> None:
    """Behind recurrent layers by rules that read no attention; a stage may have layers of one kind alone."""
    stock = everything(small_context(model, n_ubatch=n_ubatch), arch)
    for layer in range(1, model.n_layer):
        staged = small_context(model, n_ubatch=n_ubatch)
        assert staged.attach(f"k={layer},drop=0,score={'last' if attends(arch, layer - 1) else 'none'}") == OK
        np.testing.assert_array_equal(everything(staged, arch), stock, err_msg=f"k={layer}")


def test_half_of_a_picture_stays_at_every_layer(arch: str, model: Model) -> None:
    stock = everything(small_context(model), arch)
    for layer in range(1, model.n_layer):
        context = small_context(model)
        assert (
            context.attach(f"k={layer},drop=0.5,score={'last' if attends(arch, layer - 1) else 'random7'}")
            == OK
        )
        logits = decode(context, prompt_for(arch))
        assert len(context.kept()) == PICTURE // 2
        assert relative_rms(logits, stock[0]) > 0.01
        context.close()


def test_says_behind_which_layers_rules_that_read_attention_can_be(arch: str, model: Model) -> None:
    assert fastv.pyfastv_unsupported_reason(model.pointer) is None
    context = small_context(model)
    for layer in range(1, model.n_layer):
        reason = fastv.pyfastv_unsupported_layer(model.pointer, layer)
        if attends(arch, layer - 1):
            assert reason is None
        else:
            assert reason == b"the layer before it is recurrent, which gives no scores"
            assert context.attach(f"k={layer},drop=0.5") == UNSUPPORTED
            assert reason.decode() in last_error()
    context.close()


@pytest.mark.parametrize(("name", "is_hybrid"), [("qwen35", True), ("llama", False)])
def test_info_says_that_accuracy_was_not_measured(folder: Path, name: str, is_hybrid: bool) -> None:
    path = folder / f"{name} told.gguf"
    random_gguf.write(path, name)
    told = info.describe(info.gather(str(path), None))
    assert ("k=50%,drop=0.5 is the cautious setting" in told) == is_hybrid
    assert "possible, k = " in told


def test_sliding_windows_beside_recurrent_layers_are_refused(folder: Path) -> None:
    path = folder / "windows.gguf"
    random_gguf.write(path, "lfm2", {"attention.sliding_window": 16})
    model = Model(path)
    plain, refused = small_context(model), small_context(model)
    assert refused.attach("k=3,drop=0.5") == UNSUPPORTED
    assert "sliding windows beside recurrent layers" in last_error()
    assert "sliding windows beside recurrent layers" in _native.model_info(str(path))["unsupported_reason"]
    np.testing.assert_array_equal(everything(refused, "lfm2"), everything(plain, "lfm2"))
    model.close()


@pytest.mark.parametrize(
    "rule",
    ["score=question-max,pick=cover", "score=question-mean,pick=window4", "score=all", "score=random3"],
)
@pytest.mark.parametrize("n_cuts", [1, 2])
def test_what_was_dropped_is_in_no_later_state(talker: Talker, make: Make, rule: str, n_cuts: int) -> None:
    context = make(talker.spec(n_cuts, rule))
    chat = Chat(talker, context)
    chat.tell([1, 2, 3])
    chat.show()
    logits = [chat.say(QUESTION)]
    kept = [context.kept(cut) for cut in range(n_cuts)]
    assert [len(indices) for indices in kept] == [PICTURE // 2, PICTURE // 4][:n_cuts]
    assert relative_rms(logits[0], chat.expected(kept)) <= EXACT
    assert relative_rms(logits[0], chat.expected([])) > 100 * EXACT
    for token in (10, 11):
        assert relative_rms(chat.say([token]), chat.expected(kept)) <= EXACT


def test_all_of_a_picture_may_be_dropped(talker: Talker, make: Make) -> None:
    context = make(f"k={talker.cuts[0]},drop=1")
    chat = Chat(talker, context)
    chat.tell([1, 2, 3])
    chat.show()
    assert relative_rms(chat.say(QUESTION), chat.expected([[]])) <= EXACT


@pytest.mark.parametrize("n_cuts", [1, 2])
def test_a_long_conversation_is_the_reference(talker: Talker, make: Make, n_cuts: int) -> None:
    """Two pictures, with text between, before the first question; another in a later turn. Nothing is recalled."""
    context = make(talker.spec(n_cuts), n_ubatch=32)
    chat = Chat(talker, context)
    chat.tell([1, 2, 3])
    chat.show(1)
    chat.tell([20, 21])
    chat.show(2)

    def kept() -> list[list[int]]:
        return [context.kept(cut) for cut in range(n_cuts)]

    for turn in (QUESTION, [10], [11], SECOND, [12]):
        assert relative_rms(chat.say(turn), chat.expected(kept())) <= EXACT
    chat.show(3)
    assert relative_rms(chat.say(QUESTION), chat.expected(kept())) <= EXACT
    assert len(context.kept()) == 3 * PICTURE // 2
    assert context.report().n_recalled == 0


def test_what_is_recalled_enters_the_states_when_it_comes_back(talker: Talker, make: Make) -> None:
    context = make(talker.spec(shared=",recall=0.2"))
    chat = Chat(talker, context)
    chat.tell([1, 2, 3])
    chat.show()
    chat.say(QUESTION)
    chat.say([10])
    first = context.kept()
    logits = chat.say(SECOND)
    back = sorted(set(context.kept()) - set(first))
    assert 0 < len(back) <= 0.2 * PICTURE
    assert relative_rms(logits, chat.expected([context.kept()], back)) <= EXACT
    assert (
        relative_rms(logits, chat.expected([context.kept()])) > EXACT
    )  # as if it had been there from the first


def test_weights_reach_the_layers_with_attention(talker: Talker, make: Make) -> None:
    plain, weighed = make(talker.spec()), make(talker.spec(rule="score=last,weigh"))
    logits = []
    for context in (plain, weighed):
        chat = Chat(talker, context)
        chat.show()
        logits.append(chat.say(QUESTION))
    assert plain.kept() == weighed.kept()
    assert relative_rms(*logits) > EXACT


def test_stages_come_and_go(talker: Talker, make: Make) -> None:
    """Other layers, and none: nothing of the memory before is left."""
    context, fresh, stock = make(talker.spec()), make(talker.spec(2)), make()
    decode(context, prompt_for(talker.arch))
    for spec, like in ((talker.spec(2), fresh), (None, stock)):
        assert (context.detach() if spec is None else context.attach(spec)) == OK, last_error()
        np.testing.assert_array_equal(
            decode(context, prompt_for(talker.arch)), decode(like, prompt_for(talker.arch))
        )


def test_the_report_has_the_bytes_of_the_states(talker: Talker, make: Make) -> None:
    stock, staged = make(), make(talker.spec(2))
    for context in (stock, staged):
        assert sum(context.report().kv_bytes_used) == 0
        decode(context, prompt_for(talker.arch))
    report, of_stock = staged.report(), stock.report()
    assert sum(report.kv_bytes) == of_stock.kv_bytes[0] == report.kv_bytes_stock
    assert sum(report.kv_bytes_used) < of_stock.kv_bytes_used[0] == report.kv_bytes_used_stock
    staged.clear()
    assert sum(staged.report().kv_bytes_used) == 0


def test_keys_that_were_not_rotated_are_not_turned_back(folder: Path) -> None:
    """Granite 4 has layers with attention that know no positions: without RoPE their scores are the same."""
    path = folder / "no rope.gguf"
    random_gguf.write(path, "granitehybrid", {"rope.scaling.finetuned": False})
    model = Model(path)
    scores = []
    for rule in ("last", "last-no-rope"):
        context = small_context(model, type_k=llama.GGML_TYPE_F32)
        assert context.attach(f"k=3,drop=0.5,score={rule}") == OK, last_error()
        decode(context, prompt_for("granitehybrid"))
        scores.append(context.scores())
        context.close()
    np.testing.assert_array_equal(*scores)
    model.close()
