"""The conversation on a terminal: what is typed, what is answered, what Ctrl-C and errors leave."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from conftest import FakeEngine

import pyfastv
from pyfastv.commands.main import main
from pyfastv.models import bundled_examples

CLOCK, ANALOG, *_ = bundled_examples()
PICTURE = str(CLOCK.picture)

TypeIn = Callable[[Iterable[str | type[BaseException]]], None]


@pytest.fixture
def type_in(monkeypatch: pytest.MonkeyPatch) -> TypeIn:
    """What is typed, line by line; an exception's class is raised instead."""

    def typed(lines: Iterable[str | type[BaseException]]) -> None:
        left = iter(lines)

        def read(prompt: str = "") -> str:
            line = next(left, EOFError)
            if not isinstance(line, str):
                raise line
            return line

        monkeypatch.setattr("builtins.input", read)

    return typed


def prompts(engine: Any) -> list[tuple[str, int]]:
    """Text without markers, and the number of pictures, of every prefill."""
    made = [arguments for name, arguments in engine.calls if name == "prefill"]
    return [(call["prompt"].replace(engine.media_marker, "*"), len(call["images"])) for call in made]


def test_a_conversation_knows_what_was_said(
    type_in: TypeIn, fake_engine: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(["", "One?", f"/image {PICTURE}", "Two?"])
    assert main(["chat", PICTURE, "--system", "S", "--no-progress"]) == 0
    assert prompts(fake_engine[0]) == [
        ("S USER: *\nOne? ASSISTANT:", 1),
        ("S USER: *\nOne? ASSISTANT: It is 9:10. Yes.</s>USER: *\nTwo? ASSISTANT:", 2),
    ]
    assert capsys.readouterr().out == "It is 9:10. Yes.\n" * 2
    assert fake_engine[0].closed


def test_why_prints_the_last_report(
    type_in: TypeIn, fake_engine: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(["/why", "Q?", "/why", "/what"])
    assert main(["chat"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("nothing was asked yet\nIt is 9:10. Yes.\nvisual tokens")
    assert "/image PATH" in printed.err


def test_an_error_ends_the_answer_and_not_the_conversation(
    type_in: TypeIn, fake_engine: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def lines() -> Iterator[str]:
        yield "/image missing.png"
        fake_engine[0].failing = "prefill"
        fake_engine[0].failure = pyfastv.DecodeError("no room")
        yield "One?"
        fake_engine[0].failing = ""
        yield "Two?"

    type_in(lines())
    assert main(["chat", PICTURE]) == 0
    printed = capsys.readouterr()
    assert printed.out == "It is 9:10. Yes.\n"
    assert printed.err.splitlines() == ["pyfastv: missing.png: no such file", "pyfastv: no room"]
    # the picture is not lost with the question that failed
    assert prompts(fake_engine[0])[-1] == ("USER: *\nTwo? ASSISTANT:", 1)


def test_ctrl_c_leaves_a_line(
    type_in: TypeIn, fake_engine: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    type_in([KeyboardInterrupt, "Q?", KeyboardInterrupt])
    assert main(["chat"]) == 0
    assert capsys.readouterr().out == "\nIt is 9:10. Yes.\n\n"


def test_ctrl_c_stops_an_answer_which_stays_as_far_as_it_came(
    type_in: TypeIn,
    fake_engine: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    generate = FakeEngine.next

    def interrupted(engine: FakeEngine, request: int) -> tuple[int, bytes] | None:
        if len([name for name, _ in engine.calls if name == "next"]) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return generate(engine, request)

    monkeypatch.setattr(FakeEngine, "next", interrupted)
    type_in(["One?", "/why", "Two?"])
    assert main(["chat", PICTURE]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("It is 9:10\nvisual tokens ")
    assert printed.out.endswith("\nIt is 9:10. Yes.\n")
    assert printed.err == "stopped\n"
    assert "reset" not in dict(fake_engine[0].calls)
    assert prompts(fake_engine[0])[-1][0] == "USER: *\nOne? ASSISTANT: It is 9:10</s>USER: Two? ASSISTANT:"


def test_ctrl_c_while_the_prompt_is_read(
    type_in: TypeIn, fake_engine: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def lines() -> Iterator[str]:
        fake_engine[0].failing, fake_engine[0].failure = "prefill", KeyboardInterrupt()
        yield "One?"
        fake_engine[0].failing = ""
        yield "Two?"

    type_in(lines())
    assert main(["chat", PICTURE]) == 0
    assert capsys.readouterr().err == "\nstopped\n"
    assert prompts(fake_engine[0])[-1] == ("USER: *\nTwo? ASSISTANT:", 1)


def test_chat_answers_question_by_question(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    questions = [CLOCK.question, "/why", "Is the clock digital or analog?", "/why"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(questions)))
    assert main(["chat", PICTURE]) == 0
    printed = capfd.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == CLOCK.answer
    assert "Analog" in lines
    reports = [line for line in lines if line.startswith("pictures")]
    assert [", 0 from the cache" in line for line in reports] == [True, True]
    assert ["1 encoded" in line for line in reports] == [True, False]
    assert printed.err == ""
