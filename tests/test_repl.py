"""The conversation on a terminal: what is typed, what is answered, what Ctrl-C and errors leave."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from conftest import FakeEngine

import pyfastv
from pyfastv.commands.completion import completions
from pyfastv.commands.main import main
from pyfastv.commands.media import dropped_paths
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
    assert main(["chat"]) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith("nothing was asked yet\nIt is 9:10. Yes.\nvisual tokens")
    assert "/image PATH" in printed.err
    assert "there is no /what" in printed.err


def test_an_error_ends_the_answer_and_not_the_conversation(
    type_in: TypeIn, fake_engine: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def lines() -> Iterator[str]:
        fake_engine[0].failing = "prefill"
        fake_engine[0].failure = pyfastv.DecodeError("no room")
        yield "One?"
        fake_engine[0].failing = ""
        yield "Two?"

    type_in(lines())
    assert main(["chat", PICTURE]) == 1
    printed = capsys.readouterr()
    assert printed.out == "It is 9:10. Yes.\n"
    assert printed.err.splitlines() == ["pyfastv: no room"]
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


# pictures


@pytest.mark.parametrize(
    "line",
    [
        "/image {}",
        "/image '{}'",
        '/image "{}"',
        "/image {escaped}",
        "/image {uri}",
        "{escaped}",
        "'{}'",
        "{uri}",
    ],
)
def test_a_path_is_taken_as_a_terminal_writes_it(
    line: str, type_in: TypeIn, fake_engine: list[Any], tmp_path: Path
) -> None:
    path = tmp_path / "my clock.png"
    path.write_bytes(CLOCK.picture.read_bytes())
    line = line.format(path, escaped=str(path).replace(" ", "\\ "), uri=path.as_uri())
    type_in([line, "One?"])
    assert main(["chat"]) == 0
    assert prompts(fake_engine[0]) == [("USER: *\nOne? ASSISTANT:", 1)]


def test_several_files_are_dropped_at_once(type_in: TypeIn, fake_engine: list[Any]) -> None:
    type_in([f"'{PICTURE}' '{bundled_examples()[-1].picture}' ", "One?"])
    assert main(["chat"]) == 0
    assert prompts(fake_engine[0])[0][1] == 2


def test_a_name_with_spaces_that_is_no_file_is_named_whole(
    type_in: TypeIn, fake_engine: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(["/image no such file.png", "/image 'one more'.png"])
    assert main(["chat"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told == ["pyfastv: no such file.png: no such file", "pyfastv: one more.png: no such file"]


def test_nothing_is_answered_without_the_picture_that_failed(
    type_in: TypeIn, fake_engine: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(["/image missing.png", "One?", "Two?", f"/image {PICTURE}", "Three?"])
    assert main(["chat"]) == 1
    assert prompts(fake_engine[0]) == [("USER: *\nThree? ASSISTANT:", 1)]
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "pyfastv: missing.png: no such file"
    assert [line.startswith("pyfastv: not asked, since its picture") for line in told[1:]] == [True, True]


def test_at_a_terminal_the_question_can_be_asked_again_without_it(
    type_in: TypeIn, fake_engine: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    type_in(["/image missing.png", "One?", "One?"])
    assert main(["chat", "--no-history"]) == 0
    assert prompts(fake_engine[0]) == [("USER: One? ASSISTANT:", 0)]


# commands


def test_a_question_may_begin_with_a_path(type_in: TypeIn, fake_engine: list[Any]) -> None:
    type_in(["/tmp is what kind of folder?", "'What' is a word?"])
    assert main(["chat"]) == 0
    first, second = (text for text, _ in prompts(fake_engine[0]))
    assert first == "USER: /tmp is what kind of folder? ASSISTANT:"
    assert "'What' is a word?" in second


def test_a_command_that_is_misspelled_is_not_asked(
    type_in: TypeIn, fake_engine: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(["/imag photo.png", "/temperature"])
    assert main(["chat"]) == 1
    assert "there is no /imag;" in capsys.readouterr().err
    assert prompts(fake_engine[0]) == []


@pytest.mark.parametrize("word", ["/exit", "/quit", "/bye"])
def test_exit_ends(word: str, type_in: TypeIn, fake_engine: list[Any]) -> None:
    type_in([word, "One?"])
    assert main(["chat"]) == 0
    assert prompts(fake_engine[0]) == []


def test_clear_forgets_what_was_said_and_shown(type_in: TypeIn, fake_engine: list[Any]) -> None:
    type_in(["One?", f"/image {PICTURE}", "/clear", "Two?"])
    assert main(["chat", PICTURE, "--system", "S"]) == 0
    assert prompts(fake_engine[0])[-1] == ("S USER: Two? ASSISTANT:", 0)


def test_set_changes_the_options_of_later_answers(
    type_in: TypeIn, fake_engine: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(
        [
            *("/set temp 0.5", "/set max-tokens=2", "/set stop x y", "/set fastv off"),
            *("/set reasoning_effort none", "One?", "/set", "/set temp default", "Two?"),
        ]
    )
    assert main(["chat", PICTURE, "--temp", "0.25"]) == 0
    first, second = (arguments for name, arguments in fake_engine[0].calls if name == "start")
    assert (first["temperature"], first["max_tokens"]) == (0.5, 2)
    assert (second["temperature"], second["max_tokens"]) == (0.0, 2)
    assert dict(fake_engine[0].calls)["prefill"]["fastv"] == ""
    told = capsys.readouterr().out
    assert "temperature        0.5\n" in told
    assert "reasoning_effort   none\n" in told


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/set temp hot", "temperature must be 0 or more; got 'hot'"),
        ("/set speed 9", "/set has no speed; it has max_tokens, temperature,"),
        ("/set fastv best", "best"),
        ("/set reasoning_effort much", "reasoning_effort must be one of none, minimal,"),
        ("/set seed", "/set seed needs a value"),
        ("/image", "/image needs the path"),
    ],
)
def test_a_wrong_command_is_told_and_changes_nothing(
    line: str, words: str, type_in: TypeIn, fake_engine: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    type_in([line, "One?"])
    assert main(["chat", PICTURE]) == 1
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.out == "It is 9:10. Yes.\n"


def test_v_tells_a_line_of_every_answer(
    type_in: TypeIn, fake_engine: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(["One?", "Two?"])
    assert main(["chat", PICTURE, "-v"]) == 0
    told = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in told] == ["576 visual tokens"] * 2


# the keys of a terminal


def at_a_terminal(home: Path, typed: bytes) -> None:
    """A conversation that ends with what is typed, as soon as a line can be."""
    pty = pytest.importorskip("pty", reason="this machine has no terminals of its own")
    env = {**os.environ, "XDG_STATE_HOME": str(home), "HOME": str(home), "TERM": "xterm"}
    env["PROMPT_TOOLKIT_NO_CPR"] = "1"  # nobody answers where the cursor is
    command = [sys.executable, "-m", "pyfastv", "chat", "-c", "512", "-t", "1"]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, env=env, cwd="/"
    )
    os.close(theirs)
    seen = b""
    while b"\x1b[?2004h" not in seen:  # pastes are told from typing: it reads
        assert select.select([ours], [], [], 60)[0], seen
        seen += os.read(ours, 1000)
    os.write(ours, typed)
    assert process.wait(60) == 0
    os.close(ours)


def test_lines_of_earlier_conversations_are_under_the_arrow_keys(tmp_path: Path) -> None:
    at_a_terminal(tmp_path, b"/exit\n")
    at_a_terminal(tmp_path, b"\x1b[A\n")  # arrow up
    (kept,) = tmp_path.rglob("chat_history")
    assert kept.read_text() == '"/exit"\n'  # the same line twice is kept once
    assert kept.stat().st_mode & 0o077 == 0


def typed_at_a_prompt(keys: str, kept: bool = False) -> str:
    """The text that they become."""
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    from pyfastv.commands.terminal import prompt

    def complete(line: str) -> list[Any]:
        Timer(0.2, pipe.send_text, ["\r"]).start()  # once that is in the line
        return completions(line, ["/image", "/clear"], {"seed": ["default"]})

    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(keys)
        return prompt(complete, kept)()


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ("One?\r", "One?"),
        ("\x1b[200~first\nsecond\r\nthird\x1b[201~\r", "first\nsecond\nthird"),
        ("first\x1b\rsecond\r", "first\nsecond"),
        ("/im\t", "/image"),
        ("/set se\t", "/set seed"),
        ("/set seed d\t", "/set seed default"),
    ],
)
def test_keys_at_a_terminal(keys: str, text: str) -> None:
    assert typed_at_a_prompt(keys) == text


def test_a_text_of_several_lines_is_kept_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    text = "first\nse\u2028cond"
    typed_at_a_prompt(f"\x1b[200~{text}\x1b[201~\r", kept=True)
    (kept,) = tmp_path.rglob("chat_history")
    with kept.open("a") as file:
        file.write("of another program\n")
    assert typed_at_a_prompt("\x1b[A\r", kept=True) == "of another program"
    assert typed_at_a_prompt("\x1b[A\x1b[A\r", kept=True) == text


def test_a_long_history_loses_its_beginning(tmp_path: Path) -> None:
    from pyfastv.commands.terminal import KeptHistory

    file = tmp_path / "chat_history"
    file.write_text("".join(f'"{i}"\n' for i in range(2001)))
    lines = [*KeptHistory(file).load_history_strings()]
    assert (lines[0], lines[-1], len(lines)) == ("2000", "1001", 1000)
    assert len(file.read_text().splitlines()) == 1000
    nowhere = KeptHistory(tmp_path / "chat_history" / "x")
    nowhere.store_string("lost")
    assert [*nowhere.load_history_strings()] == []


# completion


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("clock.png", "my clock.png", 'Bob\'s "new" clock.png', ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "old ones").mkdir()
    (tmp_path / "old ones" / "1.png").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def completed(line: str) -> list[str]:
    """Whole lines."""
    found = completions(line, ["/image", "/set", "/why"], {"seed": ["default"], "stop": []})
    return [line[: len(line) - one.length] + one.text for one in found]


@pytest.mark.parametrize("begun", ["", "'", '"'])
@pytest.mark.parametrize("folder", ["", "./", "~/", "{}/"])
def test_a_completed_path_is_read_back(begun: str, folder: str, pictures: Path) -> None:
    folder = folder.format(pictures)
    lines = completed(f"/image {begun}{folder}")
    assert len(lines) == 4
    names = set()
    for line in lines:
        argument = line.removeprefix("/image ")
        if argument.endswith("/"):
            (argument,) = completed(line)
            argument = argument.removeprefix("/image ")
        (path,) = dropped_paths(argument)
        assert os.path.isfile(path), line
        names.add(os.path.basename(path))
    assert names == {"clock.png", "my clock.png", 'Bob\'s "new" clock.png', "1.png"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/ima", ["/image"]),
        ("/image clo", ["/image clock.png"]),
        ("/image my cl", ["/image my\\ clock.png"]),  # nobody has quoted the blank
        ("/image my\\ cl", ["/image my\\ clock.png"]),
        ("/image 'my cl", ["/image 'my clock.png'"]),
        ("/image clock.png 'my", ["/image clock.png 'my clock.png'"]),
        ("/image .h", ["/image .hidden.png"]),
        ("/image old", ["/image old\\ ones/"]),
        ("/image none", []),
        ("/image no folder/", []),
        ("'./my", ["'./my clock.png'"]),
        ("~/clo", ["~/clock.png"]),
        ("/set s", ["/set seed", "/set stop"]),
        ("/set seed ", ["/set seed default"]),
        ("/set none ", []),
        ("What is in clo", []),
        ("", []),
    ],
)
def test_what_tab_completes(line: str, expected: list[str], pictures: Path) -> None:
    assert completed(line) == expected


def test_a_folder_that_is_none_completes_nothing(tmp_path: Path) -> None:
    assert completed(f"/image {tmp_path}/none/x") == completed("/image a\0b/") == []
