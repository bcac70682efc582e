"""LLAMA_FASTV: programs that know nothing of pyfastv prune. The program here is llama-cpp-python with its own handlers.

llama.cpp's own programs are in test_programs.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pyfastv
from pyfastv.models import bundled_examples, bundled_mmproj, bundled_model

EXAMPLE = bundled_examples()[-1]

PROGRAM = """
import base64, json, sys
from llama_cpp import Llama
from llama_cpp.llama_chat_format import Llava15ChatHandler, MTMDChatHandler

handler, model, mmproj, picture, question, verbose = sys.argv[1:7]

class Llava15(Llava15ChatHandler):  # the prompt form of the bundled model; nothing else is changed
    DEFAULT_SYSTEM_MESSAGE = None
    CHAT_FORMAT = (
        "{% for message in messages %}USER: {% for part in message.content %}"
        "{% if part.type == 'image_url' %}{{ part.image_url.url }}{% else %}{{ part.text }}{% endif %}"
        "{% endfor %} {% endfor %}ASSISTANT:"
    )

llm = Llama(
    model_path=model, chat_handler={"llava15": Llava15, "mtmd": MTMDChatHandler}[handler](mmproj, verbose=False),
    n_ctx=1024, n_batch=1024, verbose=bool(int(verbose)),
)
uri = "data:image/png;base64," + base64.b64encode(open(picture, "rb").read()).decode()
# neither handler's prompt has a line end behind the picture, as the model's has
content = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "\\n" + question}]
made = llm.create_chat_completion(messages=[{"role": "user", "content": content}], temperature=0.0, max_tokens=64)
print(json.dumps({"answer": made["choices"][0]["message"]["content"].strip()}))
"""
# Characters: with another number of threads attention adds in another order, which a long text shows at last.
COMPARED = 160
SETTINGS = [
    None,
    "fastv,k=2,drop=0.9",
    "k=2,drop=0.5,score=question-mean,pick=window4,merge;k=6,drop=0.9,score=last",
]


def answer(
    tmp_path: Path, handler: str, setting: str | None, question: str, *, verbose: bool = False
) -> tuple[str, str]:
    """The program's answer, and what it wrote to stderr."""
    env = {name: value for name, value in os.environ.items() if name != "LLAMA_FASTV"}
    env |= {"LLAMA_CPP_LIB_PATH": str(pyfastv.lib_path()), "MTMD_CPP_LIB": str(pyfastv.lib_path())}
    if setting is not None:
        env["LLAMA_FASTV"] = setting
    files = [str(bundled_model()), str(bundled_mmproj()), str(EXAMPLE.picture)]
    command = [sys.executable, "-c", PROGRAM, handler, *files, question, str(int(verbose))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=env)
    return json.loads(done.stdout.splitlines()[-1])["answer"], done.stderr


@pytest.mark.parametrize(("setting", "handler"), [*zip(SETTINGS, ["mtmd", "llava15", "mtmd"], strict=True)])
def test_an_unmodified_program_answers_as_the_runner(
    runner: pyfastv.Runner, tmp_path: Path, setting: str | None, handler: str
) -> None:
    question = "Describe the image."
    expected = runner.ask(EXAMPLE.picture, question, fastv=setting, max_tokens=64).text
    assert answer(tmp_path, handler, setting, question)[0][:COMPARED] == expected[:COMPARED]


def test_the_settings_answer_differently(runner: pyfastv.Runner) -> None:
    """Or the test above could not tell pruning from none."""
    question = "Describe the image."
    answers = [runner.ask(EXAMPLE.picture, question, fastv=setting, max_tokens=64) for setting in SETTINGS]
    assert len({answer.text for answer in answers}) == len(SETTINGS)


@pytest.mark.parametrize(
    ("setting", "wrong"),
    [
        ("k=2,drop=2", "0 <= drop <= 1"),
        ("k=12", "1 <= k <= 11"),  # only the model knows
    ],
)
def test_a_malformed_setting_is_one_line_and_no_pruning(tmp_path: Path, setting: str, wrong: str) -> None:
    text, stderr = answer(tmp_path, "mtmd", setting, EXAMPLE.question, verbose=True)
    lines = [line for line in stderr.splitlines() if "LLAMA_FASTV" in line]
    assert len(lines) == 1
    assert wrong in lines[0]
    assert "nothing is pruned" in lines[0]
    assert text == EXAMPLE.answer


@pytest.mark.parametrize(
    ("setting", "same"),
    [
        ("k=2,drop=0.9", pyfastv.Recommended(2, 0.9)),
        (" OFF ", None),
    ],
)
def test_names_of_schedules_are_understood(
    runner: pyfastv.Runner, tmp_path: Path, setting: str, same: pyfastv.Schedule | None
) -> None:
    question = "Describe the image."
    expected = runner.ask(EXAMPLE.picture, question, fastv=same, max_tokens=64).text
    text, stderr = answer(tmp_path, "mtmd", setting, question, verbose=True)
    assert text[:100] == expected[:100]  # of another number of threads, and the most is dropped
    assert ("LLAMA_FASTV: k=2,drop=0.9,score=question-max,pick=cover,weigh" in stderr) == (same is not None)
    assert "nothing is pruned" not in stderr


def test_a_runner_does_what_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment says to programs that cannot be asked."""
    monkeypatch.setenv("LLAMA_FASTV", "fastv,k=2,drop=0.9")
    for rule, kept in ((None, 576), (pyfastv.FastV(2, 0.5), 288)):
        with pyfastv.Runner(n_ctx=1024, fastv=rule) as runner:
            answer = runner.ask(EXAMPLE.picture, EXAMPLE.question)
        assert answer.report.visual_tokens_kept == kept
