"""``pyfastv ask``: one prompt or one for each picture, standard input, and what a program reads of it."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pyfastv
from pyfastv.commands.help import GROUPS
from pyfastv.commands.main import cli, main
from pyfastv.commands.told import tell_error
from pyfastv.models import bundled_examples, bundled_model

CLOCK = bundled_examples()[0]
PICTURE = str(CLOCK.picture)
CHART = str(pyfastv.examples.chart)
PYFASTV = Path(sys.executable).parent / "pyfastv"


def typed(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8"))


def prompts(engine: Any) -> list[tuple[str, int]]:
    made = [arguments for name, arguments in engine.calls if name == "prefill"]
    return [(call["prompt"].replace(engine.media_marker, "*"), len(call["images"])) for call in made]


# several pictures


def test_each_picture_is_a_prompt_and_a_line(
    fake_engine: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", "--each", PICTURE, CHART, "Q?"]) == 0
    assert prompts(fake_engine[0]) == [("USER: *\nQ? ASSISTANT:", 1)] * 2
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert [line["picture"] for line in lines] == [PICTURE, CHART]
    for line in lines:
        assert (line["question"], line["answer"], line["finish_reason"]) == ("Q?", "It is 9:10. Yes.", "stop")
        assert line["report"]["visual_tokens"] == 576
        assert line["model"] == bundled_model().name
    assert printed.err == ""


def test_a_picture_that_fails_has_a_line_and_the_others_are_asked_about(
    fake_engine: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", "--each", "missing.png", PICTURE, "Q?", "-v"]) == 1
    printed = capsys.readouterr()
    first, second = (json.loads(line) for line in printed.out.splitlines())
    assert first["error"] == "missing.png: no such file"
    assert "answer" not in first
    assert (first["picture"], second["picture"]) == ("missing.png", PICTURE)
    assert second["answer"] == "It is 9:10. Yes."
    assert printed.err.splitlines()[0].startswith("576 visual tokens, 288 kept; first token after ")


def test_json_has_no_one_or_several_pictures(
    fake_engine: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    uri = "data:image/png;base64," + base64.b64encode(CLOCK.picture.read_bytes()).decode()
    for pictures in ([], [PICTURE], [PICTURE, uri]):
        assert main(["ask", *pictures, "Q?", "--json"]) == 0
    found = [json.loads(line)["picture"] for line in capsys.readouterr().out.splitlines()]
    assert found == [None, PICTURE, [PICTURE, "data URI (image/png;base64)"]]


def test_answers_of_the_bundled_model_to_each(capfd: pytest.CaptureFixture[str]) -> None:
    wanted = {str(example.picture): example for example in bundled_examples() if "clock" in example.question}
    assert main(["ask", "--each", *wanted, CLOCK.question, "-c", "1024"]) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["answer"] for line in lines] == [CLOCK.answer] * len(wanted)


# questions


def test_a_question_without_a_picture(fake_engine: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "What is a clock?"]) == 0
    assert prompts(fake_engine[0]) == [("USER: What is a clock? ASSISTANT:", 0)]
    assert capsys.readouterr().out == "It is 9:10. Yes.\n"


def test_a_question_without_a_picture_needs_no_mmproj(
    fake_engine: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copy(bundled_model(), tmp_path / "model.gguf")
    model = ["-m", str(tmp_path / "model.gguf")]
    assert main(["ask", "What is a clock?", *model]) == 0
    assert fake_engine[0].options["mmproj_path"] is None
    assert main(["ask", PICTURE, "What is it?", *model]) == 2
    assert "--model needs --mmproj" in capsys.readouterr().err


def test_a_question_comes_from_standard_input(
    fake_engine: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(monkeypatch, "Was heißt\ndas?\n".encode())
    assert main(["ask", PICTURE, "-"]) == 0
    assert prompts(fake_engine[0]) == [("USER: *\nWas heißt\ndas? ASSISTANT:", 1)]
    typed(monkeypatch, b" \n")
    assert main(["ask", PICTURE, "-"]) == 1
    assert "standard input has no question" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([PICTURE], "The question is missing"),
        ([PICTURE, CHART], "The question is missing"),
        (["data:image/png;base64,AAAA"], "The question is missing: data URI (image/png;base64)"),
        (["-", "-"], "- can stand for one picture"),
        (["-", "-", "Q?"], "- can stand for one picture"),
        (["--each", "Q?"], "--each needs pictures"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    arguments: list[str], words: str, fake_engine: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert fake_engine == []


def test_chat_takes_no_picture_from_standard_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "-"]) == 2
    assert "standard input has the questions" in capsys.readouterr().err


# options


@pytest.mark.parametrize("command", ["ask", "chat"])
def test_the_help_has_groups_and_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    places = [text.index(f"\n{title}:") for title in (*GROUPS, "Other options")]
    assert places == sorted(places)
    assert text.index("--temp") < text.index("\nWhat is dropped:") < text.index("--drop")
    assert max(map(text.index, ("--chat-template", "--threads-batch"))) < text.index("\nOther options:")
    examples = [line for line in text.splitlines() if line.strip().startswith(f"pyfastv {command} ")]
    assert len(examples) > 1
    for param in cli.commands[command].params:
        assert all(option in text for option in param.opts if option.startswith("-"))


def test_a_message_names_options_that_there_are(
    fake_engine: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", PICTURE, "Q?", "--max-pixels", "1000"]) == 1
    assert "the limit is 1,000: make the picture smaller, or raise --max-pixels" in capsys.readouterr().err
    tell_error(pyfastv.OptionError("n_threads_batch, chat_template"), cli.commands["ask"])
    assert capsys.readouterr().err == "pyfastv: --threads-batch, --chat-template\n"
    tell_error(pyfastv.ImageError("raise max_pixels"), cli.commands["plan"])  # which has no such option
    assert capsys.readouterr().err == "pyfastv: raise max_pixels\n"


def test_the_types_of_the_cache_and_sizes_of_batches_reach_the_engine(
    fake_engine: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    types = ["-ctk", "q8_0", "-ctv", "q4_0", "-b", "512", "-ub", "256"]
    assert main(["ask", PICTURE, "Q?", *types, "--max-pixels", "200000"]) == 0
    given = {"type_k": "q8_0", "type_v": "q4_0", "n_batch": 512, "n_ubatch": 256}
    assert given.items() <= fake_engine[0].options.items()


def test_a_cache_that_is_too_large_names_the_options_that_make_it_smaller(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(["ask", "Q?", "-c", "2000000000"]) == 1
    told = capfd.readouterr().err
    assert "--cache-type-k and --cache-type-v" in told
    assert "type_k and" not in told


def test_the_shell_completes_commands_and_options() -> None:
    def completed(words: str, at: int) -> list[str]:
        env = {**os.environ, "_PYFASTV_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(at)}
        made = subprocess.run([PYFASTV], env=env, capture_output=True, text=True, cwd="/")
        return made.stdout.split()

    assert completed("pyfastv as", 1) == ["plain,ask"]
    assert "plain,--each" in completed("pyfastv ask --ea", 2)
    env = {**os.environ, "_PYFASTV_COMPLETE": "bash_source"}
    made = subprocess.run([PYFASTV], env=env, capture_output=True, text=True, cwd="/")
    assert "complete -o nosort -F _pyfastv_completion pyfastv" in made.stdout
