"""Conversations in files: what comes back, what it costs, and what becomes of files that are not as they should be."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FakeEngine

from pyfastv import ClosedError, DataError, FastV, Frame, OptionError, Recommended, Runner, Schedule, _native
from pyfastv.models import bundled_examples, bundled_model

CLOCK, ANALOG, *_ = bundled_examples()
PICTURE = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
HEAD = struct.Struct("<16sIQ")


def engine_of(runner: Runner) -> Any:
    return runner._engine


def calls(runner: Runner, name: str) -> list[Any]:
    return [arguments for called, arguments in engine_of(runner).calls if called == name]


# what a restored conversation costs, and answers


@pytest.fixture(scope="module")
def other() -> Iterator[Runner]:
    """Another process's, as it were."""
    with Runner(n_ctx=2048) as runner:
        yield runner


@pytest.mark.parametrize("rule", [Recommended(2, 0.75), FastV(2, 0.75), None], ids=str)
def test_a_restored_conversation_goes_on_as_if_it_had_never_been_away(
    runner: Runner, other: Runner, rule: Schedule | None, tmp_path: Path
) -> None:
    path = tmp_path / "clock.session"
    with runner.session(fastv=rule) as chat:
        chat.ask(CLOCK.picture, CLOCK.question)
        assert chat.save(path)
        expected = chat.ask(ANALOG.question)
        kept = engine_of(runner).kept(0).tolist() if rule else []
    with other.session(restore=path) as again:
        assert [message["role"] for message in again.messages] == ["user", "assistant"]
        answer = again.ask(ANALOG.question)
        assert (engine_of(other).kept(0).tolist() if rule else []) == kept
    assert answer.text == expected.text
    report, wanted = answer.report, expected.report
    assert (report.pictures_encoded, report.pictures_from_cache) == (0, 0)
    assert report.cached_tokens == wanted.cached_tokens > 576
    assert report.prompt_tokens - report.cached_tokens < 64
    assert report.recalled_tokens == wanted.recalled_tokens
    assert report.fastv == rule


def test_a_conversation_is_saved_again_and_again(runner: Runner, other: Runner, tmp_path: Path) -> None:
    path = tmp_path / "clock.session"
    with runner.session() as chat:
        chat.ask(CLOCK.picture, CLOCK.question)
        chat.save(path)
        expected = [chat.ask(ANALOG.question).text, chat.ask("Background color?").text]
    with other.session(restore=path) as again:
        assert again.save(path)  # nothing was asked since
    with other.session(restore=path) as again:
        answers = [again.ask(ANALOG.question).text]
        assert again.save(path)
    with runner.session(restore=path) as again:
        answer = again.ask("Background color?")
    assert [*answers, answer.text] == expected
    assert answer.report.pictures_encoded == answer.report.pictures_from_cache == 0


def test_an_answer_that_is_being_read_ends_where_it_is(runner: Runner, tmp_path: Path) -> None:
    path = tmp_path / "clock.session"
    with runner.session() as chat:
        stream = chat.stream(CLOCK.picture, "Describe the image.")
        begun = next(stream)
        assert chat.save(path)
        assert list(stream) == []
    with runner.session(restore=path) as again:
        assert again.messages[-1] == {"role": "assistant", "content": begun}
        assert again.ask(CLOCK.question).report.cached_tokens > 576


def test_without_its_context_a_conversation_is_evaluated_anew(
    runner: Runner, other: Runner, tmp_path: Path
) -> None:
    path = tmp_path / "clock.session"
    with runner.session() as chat:
        chat.ask(CLOCK.picture, CLOCK.question)
        whole = path.with_suffix(".whole")
        assert chat.save(whole)
        runner.ask("Hello", max_tokens=1)  # has the slot
        assert not chat.save(path)
        expected = chat.ask(ANALOG.question).text
    assert path.stat().st_size < whole.stat().st_size / 2
    other.set_fastv(other.fastv)  # clears
    with other.session(restore=path) as again:
        answer = again.ask(ANALOG.question)
    assert answer.text == expected
    assert answer.report.pictures_encoded + answer.report.pictures_from_cache == 1


def test_a_context_of_another_schedule_is_left_out(runner: Runner, other: Runner, tmp_path: Path) -> None:
    path = tmp_path / "clock.session"
    with runner.session() as chat:
        chat.ask(CLOCK.picture, CLOCK.question)
        assert chat.save(path)
    with pytest.warns(UserWarning, match="reads the conversation anew: it was made by the schedule"):
        again = other.session(restore=path, fastv=FastV(3, 0.5))
    report = again.ask(ANALOG.question).report
    assert report.fastv == FastV(3, 0.5)
    assert report.pictures_encoded + report.pictures_from_cache == 1


def test_a_context_of_other_types_is_left_out(runner: Runner, tmp_path: Path) -> None:
    path = tmp_path / "clock.session"
    with runner.session() as chat:
        chat.ask(CLOCK.picture, CLOCK.question)
        assert chat.save(path)
    with Runner(n_ctx=1024, type_k="q8_0") as quantized:
        with pytest.warns(UserWarning, match="its context does not fit this runner"):
            again = quantized.session(restore=path)
        assert again.ask(ANALOG.question).report.pictures_encoded == 1


def test_a_context_of_too_many_tokens_is_left_out(runner: Runner, tmp_path: Path) -> None:
    path = tmp_path / "clock.session"
    with runner.session() as chat:
        chat.ask(CLOCK.picture, CLOCK.question)
        assert chat.save(path)
    with Runner(n_ctx=512, fastv=runner.fastv) as small, pytest.warns(UserWarning, match="n_ctx is 512"):
        assert len(small.session(restore=path).messages) == 2


def test_a_conversation_beside_others_takes_a_slot_of_its_own(runner: Runner, tmp_path: Path) -> None:
    path = tmp_path / "clock.session"
    with runner.session() as chat:
        chat.ask(CLOCK.picture, CLOCK.question)
        assert chat.save(path)
    with Runner(n_ctx=1024, n_slots=2) as two:
        stream = two.stream("Hello", ignore_eos=True, max_tokens=20)
        begun = next(stream)
        again = two.session(restore=path)
        assert again.ask(ANALOG.question).report.cached_tokens > 576
        assert len(begun + stream.read().text) > len(begun)


def test_any_change_of_the_state_is_refused_or_harmless(runner: Runner) -> None:
    """The hash in a file finds accidents; this is of what it does not."""
    engine = engine_of(runner)
    with runner.session() as chat:
        chat.ask(CLOCK.picture, CLOCK.question)
        state = engine.save(chat._place.number)
    random = np.random.default_rng(5)
    refused = 0
    for at in [*range(0, 400, 7), *random.integers(0, len(state), 40)]:
        changed = state.copy()
        changed[at] ^= 1 << random.integers(8)
        try:
            engine.restore(changed)
        except OptionError:
            refused += 1
    for size in (0, 7, 8, 100, len(state) // 2, len(state) - 1):
        with pytest.raises(OptionError):
            engine.restore(state[:size])
    assert refused > 10
    engine.reset()
    assert runner.ask(CLOCK.picture, CLOCK.question).text == CLOCK.answer


# what is in a file


def saved(runner: Runner, path: Path, **options: Any) -> Path:
    with runner.session(system="S", **options) as chat:
        chat.ask(PICTURE, "One?")
        chat.ask([PICTURE, Frame(PICTURE, "film", 3)], "Two?")
        assert chat.save(path)
    return path


def test_messages_come_back_as_they_were(fake_runner: Runner, tmp_path: Path) -> None:
    path = saved(fake_runner, tmp_path / "a.session")
    with fake_runner.session(restore=path) as again:
        messages = again.messages
        again.ask("Three?")
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 2]
    assert messages[0]["content"] == "S"
    assert np.array_equal(messages[1]["content"][0]["image"], PICTURE)
    frame = messages[3]["content"][1]["image"]
    assert (frame.video, frame.number) == ("film", 3)
    assert np.array_equal(frame.pixels, PICTURE)
    assert calls(fake_runner, "restore") == [b"the context"]
    before, after = calls(fake_runner, "prefill")[-2:]
    assert after["prompt"].startswith(before["prompt"])
    assert after["image_ids"] == before["image_ids"]


def test_options_come_back_and_may_be_replaced(fake_runner: Runner, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "max_tokens": 2,
        "stop": ("x",),
        "logit_bias": {5: 1.5},
        "fastv": FastV(4, 0.25),
        "response_format": {"type": "json_object"},
    }
    path = saved(fake_runner, tmp_path / "a.session", **options)
    with fake_runner.session(restore=path) as again:
        again.ask("Three?")
    first, second = calls(fake_runner, "start")[-2:]
    assert first == second
    assert second["logit_bias"] == [(5, 1.5)]
    assert calls(fake_runner, "prefill")[-1]["fastv"] == FastV(4, 0.25).spec()
    with fake_runner.session(restore=path, max_tokens=1) as again:
        assert again.ask("Three?").text == "It is "
    with pytest.raises(OptionError, match="system"):
        fake_runner.session(restore=path, system="S")


def test_a_session_that_was_asked_nothing_is_saved(fake_runner: Runner, tmp_path: Path) -> None:
    path = tmp_path / "a.session"
    with fake_runner.session(system="S") as chat:
        assert not chat.save(path)
    assert fake_runner.session(restore=path).messages == [{"role": "system", "content": "S"}]
    with pytest.raises(ClosedError, match="session"):
        chat.save(path)


def test_what_cannot_be_saved_leaves_the_file_that_was_there(fake_runner: Runner, tmp_path: Path) -> None:
    path = saved(fake_runner, tmp_path / "a.session")
    before = path.read_bytes()
    with fake_runner.session(chat_template_kwargs={"x": object()}) as chat, pytest.raises(OptionError):
        chat.save(path)
    with fake_runner.session() as chat:
        for wrong in (tmp_path, tmp_path / "none" / "a.session"):
            with pytest.raises(DataError):
                chat.save(wrong)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["a.session"]


# files that are not as they should be


def refused(runner: Runner, path: Path, content: bytes, words: str) -> None:
    path.write_bytes(content)
    before = list(engine_of(runner).calls)
    with pytest.raises(DataError, match=words) as caught:
        runner.session(restore=path)
    assert str(path) in str(caught.value)
    assert engine_of(runner).calls == before


def test_a_damaged_or_truncated_file_is_refused(fake_runner: Runner, tmp_path: Path) -> None:
    path = saved(fake_runner, tmp_path / "a.session")
    whole = path.read_bytes()
    for at in [*range(20, len(whole), 37), len(whole) - 1]:
        refused(fake_runner, path, whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], "is damaged")
    for size in [*range(16, len(whole), 53), len(whole) - 1]:
        refused(fake_runner, path, whole[:size], "is damaged, or not all there")
    refused(fake_runner, path, whole + b"\0", "is damaged")


def test_other_files_are_refused(fake_runner: Runner, tmp_path: Path) -> None:
    path = saved(fake_runner, tmp_path / "a.session")
    whole = path.read_bytes()
    for other in (b"", b"GGUF", CLOCK.picture.read_bytes(), b"\x80\x04N."):
        refused(fake_runner, path, other, "is no saved conversation")
    refused(fake_runner, path, whole[:16] + struct.pack("<I", 2) + whole[20:], "of version 2, and 1 is known")
    for missing in (tmp_path / "none", tmp_path, tmp_path / "a\0b"):
        with pytest.raises(DataError, match="cannot be read"):
            fake_runner.session(restore=missing)


def test_a_file_with_the_right_hash_may_still_be_wrong(fake_runner: Runner, tmp_path: Path) -> None:
    path = saved(fake_runner, tmp_path / "a.session")
    whole = path.read_bytes()
    magic, version, size = HEAD.unpack_from(whole)
    values = json.loads(whole[HEAD.size : HEAD.size + size])
    blobs = whole[HEAD.size + size : -32]
    changes: list[dict[str, Any]] = [
        {"messages": 5},
        {"messages": [{"role": "user", "content": [{"type": "image", "blob": 99}]}]},
        {"messages": [{"role": "user"}]},
        {"blobs": [10**9]},
        {"blobs": [-1]},
        {"blobs": []},
        {"options": []},
        {"fastv": None},
        {"model": {}},
        {"model": 1},
    ]
    for change in changes:
        header = json.dumps({**values, **change}).encode()
        content = HEAD.pack(magic, version, len(header)) + header + blobs
        digest = hashlib.blake2b(content, digest_size=32).digest()
        refused(fake_runner, path, content + digest, "is damaged, though its hash is right")


def test_a_conversation_with_another_model_is_refused(
    fake_runner: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One byte of its weights is another."""
    path = saved(fake_runner, tmp_path / "a.session")
    content = bytearray(bundled_model().read_bytes())
    content[-1] ^= 1
    (tmp_path / "other.gguf").write_bytes(content)
    monkeypatch.setattr(_native, "Engine", FakeEngine)
    with Runner(tmp_path / "other.gguf") as runner, pytest.raises(DataError, match="another model"):
        runner.session(restore=path)
    with Runner(bundled_model()) as blind, pytest.raises(DataError, match="another vision encoder"):
        blind.session(restore=path)
