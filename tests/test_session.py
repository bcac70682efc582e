"""Conversations: what is kept of them, and what a later question costs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyfastv import (
    Answer,
    ClosedError,
    DecodeError,
    FastV,
    ImageError,
    OptionError,
    PyramidDrop,
    Recommended,
    Report,
    Runner,
    Schedule,
)
from pyfastv.commands.demo import same_answer
from pyfastv.models import bundled_examples

CLOCK, ANALOG, *_ = bundled_examples()
PICTURE = np.zeros((4, 6, 3), np.uint8)


def engine_of(runner: Runner) -> Any:
    return runner._engine


def prompts(runner: Runner) -> list[str]:
    """Of every prefill of a fake engine, with * for a picture."""
    engine = engine_of(runner)
    made = [arguments["prompt"] for name, arguments in engine.calls if name == "prefill"]
    return [prompt.replace(engine.media_marker, "*") for prompt in made]


# what is kept


def test_a_question_knows_the_turns_before_it(fake_runner: Runner) -> None:
    with fake_runner.session(system="S") as chat:
        assert chat.ask("One?", PICTURE, max_tokens=1).text == "It is "
        assert list(chat.stream("Two?")) == ["It is ", "9:10", ".", " Yes."]
        chat.ask("Three?", [PICTURE, PICTURE])
    assert prompts(fake_runner) == [
        "S USER: *\nOne? ASSISTANT:",
        "S USER: *\nOne? ASSISTANT: It is </s>USER: Two? ASSISTANT:",
        "S USER: *\nOne? ASSISTANT: It is </s>USER: Two? ASSISTANT: It is 9:10. Yes.</s>"
        "USER: *\n*\nThree? ASSISTANT:",
    ]


def test_messages_can_be_asked_again(fake_runner: Runner) -> None:
    with fake_runner.session() as chat:
        chat.ask("One?", PICTURE)
        assert [message["role"] for message in chat.messages] == ["user", "assistant"]
        assert chat.messages[1]["content"] == "It is 9:10. Yes."
        question = {"role": "user", "content": "Two?"}
        fake_runner.create_chat_completion([*chat.messages, question])
        chat.ask("Two?")
    assert prompts(fake_runner)[1] == prompts(fake_runner)[2]


def test_a_stopped_answer_is_kept_as_far_as_it_came(fake_runner: Runner) -> None:
    with fake_runner.session() as chat:
        stream = chat.stream("One?")
        next(stream)
        assert chat.messages[-1]["content"] == "It is "
        chat.ask("Two?")
        with pytest.raises(ClosedError, match="later request"):
            next(stream)
    assert prompts(fake_runner)[1] == "USER: One? ASSISTANT: It is </s>USER: Two? ASSISTANT:"


@pytest.mark.parametrize(
    ("question", "image", "error"),
    [("Two?", b"no picture", ImageError), (5, None, OptionError), ("Two?", None, DecodeError)],
)
def test_a_question_that_fails_leaves_no_trace(
    fake_runner: Runner, question: Any, image: Any, error: type[Exception]
) -> None:
    with fake_runner.session() as chat:
        chat.ask("One?", PICTURE)
        before = chat.messages
        engine = engine_of(fake_runner)
        engine.failing, engine.failure = "prefill", DecodeError("failed")
        with pytest.raises(error):
            chat.ask(image=image, question=question)
        assert chat.messages == before
        engine.failing = ""
        assert chat.ask("Two?").text == "It is 9:10. Yes."


def test_a_picture_is_read_once(fake_runner: Runner, tmp_path: Path) -> None:
    path = tmp_path / "clock.png"
    path.write_bytes(CLOCK.picture.read_bytes())
    with fake_runner.session() as chat:
        assert chat.ask("One?", path).report.image_decode_ms > 0
        path.unlink()
        chat.ask("Two?")
    ids = [arguments["image_ids"] for name, arguments in engine_of(fake_runner).calls if name == "prefill"]
    assert ids[0] == ids[1]


def test_options_of_a_session_are_those_of_its_questions(fake_runner: Runner) -> None:
    with fake_runner.session(max_tokens=2, fastv=FastV(4)) as chat:
        assert chat.ask("One?").text == "It is 9:10"
        assert chat.ask("Two?", max_tokens=1, fastv=None).text == "It is "
        assert chat.ask("Three?").report.fastv == FastV(4)


def test_threads_wait_for_each_other(fake_runner: Runner) -> None:
    with fake_runner.session() as chat, ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda i: chat.ask(f"Q{i}").text, range(32)))
        roles = [message["role"] for message in chat.messages]
    assert texts == ["It is 9:10. Yes."] * 32
    assert roles == ["user", "assistant"] * 32


def test_a_closed_session_says_so(fake_runner: Runner) -> None:
    with fake_runner.session() as chat:
        chat.ask("One?")
    with pytest.raises(ClosedError, match="session"):
        chat.ask("Two?")
    assert len(chat.messages) == 2
    assert fake_runner.ask(None, "Q").text == "It is 9:10. Yes."
    fake_runner.close()
    with pytest.raises(ClosedError):
        fake_runner.session()


# what a later question costs


@pytest.fixture(scope="module")
def fastv() -> Iterator[Runner]:
    """The paper's rule: it drops so much of the clock that later questions recall some."""
    with Runner(fastv=FastV(2, 0.75)) as runner:
        yield runner


@pytest.fixture
def cleared(fastv: Runner) -> Runner:
    """Nothing in the context; the encoder's cache as the tests before left it."""
    fastv.set_fastv(FastV(2, 0.75))
    return fastv


def is_no_work_for_the_picture(report: Report) -> bool:
    return (
        report.pictures_encoded == report.pictures_from_cache == 0
        and report.cached_tokens > 576
        and report.encode_ms == 0.0
        and report.prompt_tokens - report.cached_tokens < 64
    )


def test_a_second_question_costs_no_encoder_and_no_first_stage(cleared: Runner) -> None:
    with cleared.session() as chat:
        first = chat.ask(CLOCK.question, CLOCK.picture).report
        second = chat.ask(ANALOG.question).report
    assert first.pictures_encoded + first.pictures_from_cache == 1
    assert first.cached_tokens < 576
    assert is_no_work_for_the_picture(second)
    assert second.visual_tokens == 576


def test_a_later_question_recalls_within_its_budget(cleared: Runner) -> None:
    with cleared.session() as chat:
        chat.ask(CLOCK.question, CLOCK.picture)
        before = set(engine_of(cleared).kept(0).tolist())
        report = chat.ask("Background color?").report
        after = set(engine_of(cleared).kept(0).tolist())
    assert len(before) == 144
    assert before < after
    assert len(after) - len(before) == report.recalled_tokens
    assert 0 < report.recalled_tokens <= 576 * 0.025
    assert report.visual_tokens_kept == report.visual_tokens_in_stage[-1] == len(after)


def test_without_recall_the_first_choice_stays(fastv: Runner) -> None:
    with fastv.session(fastv=FastV(2, 0.75, recall=False)) as chat:
        chat.ask(CLOCK.question, CLOCK.picture)
        before = engine_of(fastv).kept(0).tolist()
        report = chat.ask("Background color?").report
        assert engine_of(fastv).kept(0).tolist() == before
    assert (report.recalled_tokens, report.visual_tokens_kept) == (0, 144)
    assert is_no_work_for_the_picture(report)


def test_another_picture_joins_a_conversation(cleared: Runner, picture: dict[str, Path]) -> None:
    with cleared.session() as chat:
        chat.ask(CLOCK.question, CLOCK.picture)
        report = chat.ask("What color are the dice?", picture["dice"]).report
    assert report.visual_tokens == 1152
    assert report.cached_tokens > 576
    assert report.pictures_encoded + report.pictures_from_cache == 1
    assert 288 <= report.visual_tokens_kept <= 288 + report.recalled_tokens


@pytest.mark.parametrize("rule", [FastV(2, 0.75), Recommended(2, 0.75), PyramidDrop()], ids=str)
def test_another_question_about_a_picture_chooses_anew(exact: Runner, rule: Schedule) -> None:
    """As if the first had not been asked. In f32: rounding decides nothing."""

    def ask(question: str) -> tuple[Answer, list[list[int]]]:
        answer = exact.ask(CLOCK.picture, question, fastv=rule, max_tokens=4)
        return answer, [engine_of(exact).kept(cut).tolist() for cut in range(len(rule.cuts))]

    exact.set_fastv(rule)  # clears
    fresh, fresh_kept = ask(ANALOG.question)
    exact.set_fastv(rule)
    ask(CLOCK.question)
    answer, kept = ask(ANALOG.question)
    assert (answer.text, kept) == (fresh.text, fresh_kept)
    report = answer.report
    assert (report.pictures_encoded, report.pictures_from_cache, report.recalled_tokens) == (0, 0, 0)
    assert report.cached_tokens > 576 > fresh.report.cached_tokens


def test_a_picture_that_comes_again_is_not_encoded_again(cleared: Runner, picture: dict[str, Path]) -> None:
    cleared.ask(CLOCK.picture, CLOCK.question)
    cleared.ask(picture["dice"], "What color are the dice?")
    answer = cleared.ask(CLOCK.picture, CLOCK.question)
    assert same_answer(answer.text, CLOCK.answer)
    assert (answer.report.pictures_encoded, answer.report.pictures_from_cache) == (0, 1)
    assert answer.report.encode_ms < 5.0


def test_without_an_encoder_cache_it_is(picture: dict[str, Path]) -> None:
    with Runner(encoder_cache_mb=0) as runner:
        for name in ("clock", "dice", "clock"):
            report = runner.ask(picture[name], "Background color?", max_tokens=1).report
            assert (report.pictures_encoded, report.pictures_from_cache) == (1, 0)


def test_two_sessions_share_a_runner(cleared: Runner, picture: dict[str, Path]) -> None:
    with cleared.session() as clock, cleared.session() as dice:
        assert same_answer(clock.ask(CLOCK.question, CLOCK.picture).text, CLOCK.answer)
        first = dice.ask("What color are the dice?", picture["dice"])
        assert same_answer(first.text, "Orange")
        again = clock.ask(ANALOG.question)
        assert same_answer(again.text, ANALOG.answer)
        assert again.report.visual_tokens == 576
        assert again.report.pictures_encoded == 0
