"""LLAMA_FASTV: llama.cpp's own programs, built unpatched, prune with our libraries loaded in place of theirs."""

from __future__ import annotations

import base64
import ctypes
import functools
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import pyfastv
from pyfastv.models import bundled_model

import random_mmproj
from c_api import llama
from programs import (
    MAX_TOKENS,
    MTMD_CLI,
    Question,
    Server,
    common_options,
    environment,
    needs_programs,
    our_libraries,
    serve,
    text_of,
    user,
)

pytestmark = needs_programs

PRUNING = [
    "fastv,k=2,drop=0.9",
    "k=2,drop=0.5,score=question-mean,pick=window4,merge;k=6,drop=0.9,score=last",
]
SETTINGS = [None, *PRUNING]
BAD_SETTING = "fastv,k=2,drop=2"

DICE = Question("dice", "What is the sum of the dice?")
CHART = Question("chart", "Describe the image.")
SCENE = Question("scene", "What is the number in the image?")
SHORTEST = Question("chart", "Which bar is the shortest?")

Expected = Callable[[str | None, Question], str]


@pytest.fixture(scope="module")
def expected(runner: pyfastv.Runner) -> Expected:
    """The Runner's answer."""

    @functools.cache
    def answer(setting: str | None, question: Question) -> str:
        return runner.ask(question.path, question.text, fastv=setting, max_tokens=MAX_TOKENS).text

    return answer


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return our_libraries(tmp_path_factory.mktemp("programs"))


def test_the_settings_answer_differently(expected: Expected) -> None:
    """Or the tests below could not tell pruning from none."""
    for question in (DICE, CHART):
        assert len({expected(setting, question) for setting in SETTINGS}) == len(SETTINGS)


# llama-mtmd-cli


def run_mtmd_cli(
    libraries: Path, setting: str | None, question: Question
) -> subprocess.CompletedProcess[str]:
    # the template puts a line end behind a picture only where it is told of the picture, which this program does not
    prompt = f"<__media__>\n{question.text}"
    command = [str(MTMD_CLI), *common_options(), "--image", str(question.path), "--prompt", prompt, "--jinja"]
    command += ["--temp", "0", "--predict", str(MAX_TOKENS)]
    env = environment(libraries, setting)
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True)


@pytest.mark.parametrize("question", [DICE, CHART], ids=lambda question: question.picture)
@pytest.mark.parametrize("setting", SETTINGS)
def test_mtmd_cli_answers_as_the_runner(
    libraries: Path, expected: Expected, setting: str | None, question: Question
) -> None:
    assert run_mtmd_cli(libraries, setting, question).stdout.strip() == expected(setting, question)


def test_mtmd_cli_says_once_that_a_setting_is_malformed(libraries: Path, expected: Expected) -> None:
    done = run_mtmd_cli(libraries, BAD_SETTING, DICE)
    assert done.stdout.strip() == expected(None, DICE)
    check_complaint(done.stderr)


def check_complaint(log: str) -> None:
    lines = [line for line in log.splitlines() if "LLAMA_FASTV" in line]
    assert len(lines) == 1
    assert "0 <= drop <= 1" in lines[0]
    assert "nothing is pruned" in lines[0]


# llama-server


@pytest.fixture(scope="module", params=PRUNING)
def server(
    request: pytest.FixtureRequest, libraries: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """As it comes: four slots, one KV cache for all."""
    with serve(tmp_path_factory.mktemp("server") / "log", libraries, request.param) as server:
        yield server


def test_a_server_without_a_setting_prunes_nothing(
    tmp_path: Path, libraries: Path, expected: Expected
) -> None:
    with serve(tmp_path / "log", libraries, None) as server:
        for question in (DICE, CHART):
            assert server.ask(question) == expected(None, question)


@pytest.mark.parametrize("setting", PRUNING)
def test_a_server_with_one_slot_answers_as_the_runner(
    tmp_path: Path, libraries: Path, expected: Expected, setting: str
) -> None:
    """The picture that comes again was put aside by the server meanwhile, and is loaded again."""
    with serve(tmp_path / "log", libraries, setting, "--parallel", "1") as server:
        for question in (DICE, CHART, DICE):
            assert server.ask(question) == expected(setting, question)


def test_a_server_answers_as_the_runner(server: Server, expected: Expected) -> None:
    for question in (DICE, CHART, DICE):
        assert server.ask(question) == expected(server.setting, question)


def test_a_server_answers_several_at_once(server: Server, expected: Expected) -> None:
    questions = [SCENE, DICE, CHART]
    with ThreadPoolExecutor(len(questions)) as threads:
        answers = list(threads.map(server.ask, questions))
    assert answers == [expected(server.setting, question) for question in questions]


def test_a_server_answers_twice_from_one_prompt(server: Server, expected: Expected) -> None:
    """The second slot gets a copy of the first one's prompt before anybody has read logits."""
    completion = server.complete([user(CHART)], n=2, cache_prompt=False)
    assert [text_of(completion, choice) for choice in (0, 1)] == [expected(server.setting, CHART)] * 2


def test_another_question_about_a_picture_chooses_anew(server: Server, expected: Expected) -> None:
    """The server keeps what both prompts begin with: the picture, which its first question had pruned."""
    server.ask(CHART)
    completion = server.complete([user(SHORTEST)])
    assert completion["usage"]["prompt_tokens_details"]["cached_tokens"] > 576
    assert text_of(completion) == expected(server.setting, SHORTEST)


def test_a_servers_conversation_is_the_runners(server: Server, runner: pyfastv.Runner) -> None:
    with runner.session(fastv=server.setting, max_tokens=MAX_TOKENS) as session:
        first = session.ask(CHART.text, CHART.path).text
        second = session.ask(SHORTEST.text).text

    messages = [user(CHART)]
    assert text_of(server.complete(messages)) == first
    messages.append({"role": "assistant", "content": first})
    messages.append({"role": "user", "content": SHORTEST.text})
    completion = server.complete(messages)
    assert completion["usage"]["prompt_tokens_details"]["cached_tokens"] > 576
    assert text_of(completion) == second


def test_a_draft_model_changes_no_answer(tmp_path: Path, libraries: Path) -> None:
    """A model of far fewer bits drafts, so that some of it is refused; the later question recalls."""
    draft = tmp_path / "draft.gguf"
    params = llama.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = llama.LLAMA_FTYPE_MOSTLY_Q2_K, True
    assert llama.llama_model_quantize(bytes(bundled_model()), bytes(draft), ctypes.byref(params)) == 0

    def conversation(server: Server) -> tuple[list[str], dict[str, int]]:
        answers, timings = [], {"draft_n": 0, "draft_n_accepted": 0}
        messages = [user(CHART)]
        for question in (SHORTEST.text, "What is the title?"):
            completion = server.complete(messages)
            for key in timings:
                timings[key] += completion["timings"].get(key, 0)
            answers.append(text_of(completion))
            messages.append({"role": "assistant", "content": answers[-1]})
            messages.append({"role": "user", "content": question})
        return answers, timings

    setting = "fastv,k=2,drop=0.75,recall=0.125"
    with serve(tmp_path / "plain", libraries, setting) as server:
        expected, _ = conversation(server)
    log = tmp_path / "drafted"
    with serve(
        log,
        libraries,
        setting,
        "--verbosity",
        "4",
        "--model-draft",
        str(draft),
        "--spec-type",
        "draft-simple",
    ) as server:
        answers, timings = conversation(server)
    assert answers == expected
    assert 0 < timings["draft_n_accepted"] < timings["draft_n"]
    # the context of the draft is none that pictures are pruned in
    assert len(re.findall(r"LLAMA_FASTV: ", log.read_text())) == 1


def test_a_server_says_once_that_a_setting_is_malformed(
    tmp_path: Path, libraries: Path, expected: Expected
) -> None:
    log = tmp_path / "log"
    with serve(log, libraries, BAD_SETTING) as server:
        assert server.ask(DICE) == expected(None, DICE)
    check_complaint(log.read_text())


@pytest.mark.parametrize("setting", ["fastv,k=6,drop=0", "k=6,drop=0.5,score=question-max"])
@pytest.mark.parametrize("with_picture", [False, True], ids=["text", "picture"])
def test_a_server_goes_back_in_a_model_with_sliding_windows(
    tmp_path: Path, libraries: Path, setting: str, with_picture: bool
) -> None:
    """Behind a long answer the windows of its question are gone; the server has saved them for one that begins alike."""
    files = random_mmproj.write_pair(tmp_path, "Gemma 3")
    words = "".join(chr(97 + i * i % 26) for i in range(100))

    def answer(server: Server, text: str, n: int, *, from_cache: bool) -> dict[str, Any]:
        image = base64.b64encode(CHART.path.read_bytes()).decode()
        picture_and_text = {"prompt_string": f"{server.marker}{text}", "multimodal_data": [image]}
        prompt = picture_and_text if with_picture else text
        options = {"cache_prompt": from_cache, "n_probs": 4, "ignore_eos": True, "return_tokens": True}
        return server.post(
            "/completion", {"prompt": prompt, "n_predict": n, "temperature": 0, "seed": 1, **options}
        )

    log = tmp_path / "log"
    with serve(log, libraries, setting, "--parallel", "1", "-ub", "64", "-c", "1024", files=files) as server:
        expected = answer(server, words[:-3] + "xyz", 8, from_cache=False)
        for _ in range(2):
            answer(server, words, 400, from_cache=True)
            found = answer(server, words[:-3] + "xyz", 8, from_cache=True)
            assert found["timings"]["cache_n"] > 90
            assert found["tokens"] == expected["tokens"]
            for token, of_expected in zip(
                found["completion_probabilities"], expected["completion_probabilities"], strict=True
            ):
                assert token["logprob"] == pytest.approx(of_expected["logprob"], abs=1e-2)
