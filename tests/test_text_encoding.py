"""Text that is not UTF-8, at every door: a clear error that says where, or other characters in its place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyfastv
from pyfastv import DataError, ImageError, OptionError, Runner, Sampling
from pyfastv.eval.layouts._files import read_json, read_jsonl
from pyfastv.models import bundled_examples
from pyfastv.settings.profile import Profile

import random_gguf
from serving import Server

CLOCK = bundled_examples()[0]
HALF = "time \ud800 is it"  # as JSON's "\ud800"
BYTE = "caf\udce9"  # as os.fsdecode(b"caf\xe9")
PICTURE = np.zeros((32, 32, 3), np.uint8)


def asked(text: str) -> list[dict[str, Any]]:
    return [{"role": "system", "content": "Answer."}, {"role": "user", "content": text}]


DOORS: dict[str, Callable[[Runner, str], object]] = {
    "ask": lambda runner, text: runner.ask(PICTURE, text, max_tokens=2),
    "ask without a picture": lambda runner, text: runner.ask(None, text, max_tokens=2),
    "system": lambda runner, text: runner.ask(PICTURE, "Hi", system=text, max_tokens=2),
    "stream": lambda runner, text: runner.stream(PICTURE, text),
    "messages": lambda runner, text: runner.create_chat_completion(asked(text)),
    "parts": lambda runner, text: runner.create_chat_completion(
        [{"role": "user", "content": [{"type": "text", "text": text}]}]
    ),
    "chunks": lambda runner, text: runner.create_chat_completion(asked(text), stream=True),
    "session": lambda runner, text: runner.session().ask(text, PICTURE),
    "stop": lambda runner, text: runner.ask(None, "Hi", stop=["a", text]),
    "grammar": lambda runner, text: runner.ask(None, "Hi", grammar=f'root ::= "{text}"'),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_lone_surrogate_is_refused_with_its_place(runner: Runner, door: str) -> None:
    with pytest.raises(
        OptionError, match=r"half of a character \(the lone surrogate U\+D800\) at character \d+: "
    ) as caught:
        DOORS[door](runner, HALF)
    str(caught.value).encode()
    assert len(str(caught.value)) < 300
    with pytest.raises(OptionError, match=r"the byte 0xE9, which is not UTF-8, at character \d+: "):
        DOORS[door](runner, BYTE)


def test_the_place_is_named(runner: Runner) -> None:
    with pytest.raises(
        OptionError, match=r"^messages\[1\]: the text has half .* at character 5: 'time \\ud800 is it'$"
    ):
        runner.create_chat_completion(asked(HALF))
    with pytest.raises(OptionError, match=r"^stop\[1\] has half"):
        Sampling(stop=["a", HALF])


def test_a_refused_text_leaves_a_session_as_it_was(runner: Runner) -> None:
    with runner.session() as session:
        answer = session.ask(CLOCK.question, CLOCK.picture, max_tokens=8).text
        with pytest.raises(OptionError):
            session.ask(HALF)
        assert [message["role"] for message in session.messages] == ["user", "assistant"]
        assert session.messages[1]["content"] == answer


def test_nul_is_a_character_of_a_question_and_none_of_a_grammar(runner: Runner) -> None:
    assert (
        runner.ask(None, "a\0b", max_tokens=1).report.prompt_tokens
        > runner.ask(None, "a", max_tokens=1).report.prompt_tokens
    )
    with pytest.raises(OptionError, match="grammar has a NUL character"):
        Sampling(grammar='root ::= "a"\0 | broken')


def test_options_of_the_runner_that_are_no_text_are_named() -> None:
    with pytest.raises(OptionError, match="type_k has half of a character"):
        Runner(type_k="f16\ud800")
    with pytest.raises(OptionError, match="type_v must be text; got 3"):
        Runner(type_v=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("uri", ["data:image/png;base64,AA\ud800", "data:\ud800,abc", "data:text/\udce9"])
def test_a_data_uri_with_a_surrogate_is_no_picture(uri: str) -> None:
    with pytest.raises(ImageError, match=r"^data URI \(") as caught:
        pyfastv.load_image(uri)
    str(caught.value).encode()


def test_a_model_with_bytes_in_its_texts_loads(tmp_path: Path) -> None:
    path, other = tmp_path / "model.gguf", tmp_path / "bytes.gguf"
    random_gguf.write(path, "llama", vocab=["<pad>"])
    # the writer only takes str: the bytes are put into the finished file, in places of the same length
    data = path.read_bytes().replace(b"</s>", b"<\xff\xe9>")
    assert data.count(b"<\xff\xe9>") == 1
    other.write_bytes(data)
    with Runner(other, n_threads=1) as runner:
        assert runner._engine.eos_token == "<\ufffd\ufffd>"
        assert runner.ask(None, "x", max_tokens=1).finish_reason in ("length", "stop")


#
# the command line
#


def run(*arguments: str | bytes, stdin: bytes = b"", **env: str) -> tuple[int, bytes, bytes]:
    """Exit status, stdout and stderr of pyfastv."""
    done = subprocess.run(
        [sys.executable, "-m", "pyfastv", *arguments],
        input=stdin,
        capture_output=True,
        env={**os.environ, "PYTHONUTF8": "0", **env},
        cwd="/",
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="this machine's arguments are UTF-16")
def test_an_argument_in_latin_1_is_told_in_one_line() -> None:
    status, _, errors = run("ask", "-t", "1", os.fsencode(CLOCK.picture), b"caf\xe9?", "-n", "2")
    assert (status, errors.count(b"\n")) == (1, 1)
    assert b"the byte 0xE9, which is not UTF-8, at character 3: 'caf" in errors


def test_lines_of_chat_in_latin_1_are_told_and_the_next_is_answered() -> None:
    status, answers, errors = run(
        "chat", "-t", "1", "-n", "4", stdin=b"caf\xe9?\nHello\n", PYTHONIOENCODING="utf-8"
    )
    assert status == 1
    assert b"the byte 0xE9, which is not UTF-8" in errors
    assert b"Traceback" not in errors
    assert answers.strip()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_answers_are_written_in_any_encoding(encoding: str) -> None:
    code = """
import sys
from pyfastv import Runner
from pyfastv.commands.main import main
stream = Runner.stream
Runner.stream = lambda self, *args, **options: stream(self, *args, grammar='root ::= "5\u2192"', **options)
sys.exit(main(sys.argv[1:]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "ask", "-t", "1", str(CLOCK.picture), "What?"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    # click writes UTF-8 where the encoding is ASCII
    assert done.stdout.strip() == (b"5\\u2192" if encoding == "latin-1" else "5\u2192".encode())


#
# files
#


def test_json_that_is_no_text_or_too_deep_is_a_data_error(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    for content in (b'{"a": "\xe9"}', b"[" * 100_000 + b"]" * 100_000):
        file.write_bytes(content)
        with pytest.raises(DataError):
            read_json(file)
        with pytest.raises(DataError):
            list(read_jsonl(file))
        with pytest.raises(DataError):
            Profile.load(file)


#
# the server
#


BODIES = {
    b'{"messages": [{"role": "user", "content": "\xe9"}]}': "not UTF-8",
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}': "lone surrogate",
    b'{"messages": [{"role": "user", "content": "Hi"}], "stop": "\\udce9"}': "lone surrogate",
    b'{"messages": [{"role": "user", "content": "Hi"}], "\\ud800": 1}': "lone surrogate",
}


def test_bodies_that_are_no_text_are_refused_and_nul_is_a_character(server: Server) -> None:
    for body, told in BODIES.items():
        status, message = post(server, body)
        assert (status, told in message) == (400, True), (body, message)
    assert (
        post(server, b'{"messages": [{"role": "user", "content": "a\\u0000b"}], "max_tokens": 1}')[0] == 200
    )


def post(server: Server, body: bytes) -> tuple[int, str]:
    status, _, data = server.request("POST", "/v1/chat/completions", body)
    return status, data.decode() if status == 200 else json.loads(data)["error"]["message"]
