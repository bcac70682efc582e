"""Everything that takes a schedule takes Turbo and a reducer, too, and puts all three in force."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyfastv import Runner
from pyfastv.commands.main import main
from pyfastv.engine.job_pool import JobPool
from pyfastv.engine.sampling import Sampling
from pyfastv.eval import AnswerFile, Asking, Question, ask_all
from pyfastv.inputs.chat import user_message
from pyfastv.models import bundled_examples
from pyfastv.show import trace

from test_llama_cpp_handler import script

CLOCK = bundled_examples()[0]
PARTS = {"fastv": "k=2,drop=0.5", "turbo": "share=0.25", "reduce": "stride,keep=0.5"}
WHOLE = f"turbo:{PARTS['turbo']} + reduce:{PARTS['reduce']} + {PARTS['fastv']}"
# 432 of 576 tokens leave the encoder, half of them enter the language model, half of these are kept
COUNTS = (216, 108)

OPTIONS: dict[str, Any] = {"n_ctx": 1024, "n_threads": 1}


def counts(report: Any) -> tuple[int, int]:
    return report.visual_tokens, report.visual_tokens_kept


def kept(entered: int, share: float) -> int:
    """Of the bundled model's 12 layers 2 see all that entered; ``share``: of 576 in all of them."""
    return round((share * 576 * 12 - 2 * entered) / 10)


def ask(runner: Runner, **options: Any) -> tuple[int, int]:
    return counts(runner.ask(CLOCK.picture, CLOCK.question, max_tokens=1, **options).report)


def of_a_runner() -> tuple[int, int]:
    with Runner(**OPTIONS, **PARTS) as runner:
        return ask(runner)


def of_its_setters() -> tuple[int, int]:
    with Runner(**OPTIONS) as runner:
        for name, text in PARTS.items():
            getattr(runner, f"set_{name}")(text)
        return ask(runner)


def of_a_request() -> tuple[int, int]:
    with Runner(**OPTIONS) as runner:
        return ask(runner, **PARTS)


def of_a_session() -> tuple[int, int]:
    with Runner(**OPTIONS) as runner, runner.session(**PARTS) as session:
        return counts(session.ask(CLOCK.question, CLOCK.picture, max_tokens=1).report)


def of_a_chat_completion() -> tuple[int, int]:
    with Runner(**OPTIONS) as runner:
        messages = [user_message(CLOCK.question, [CLOCK.picture])]
        report = runner.create_chat_completion(messages, max_tokens=1, **PARTS)["pyfastv"]
    return report["visual_tokens"], report["visual_tokens_kept"]


def of_a_pool() -> tuple[int, int]:
    with JobPool(slots=1, **OPTIONS, **PARTS) as pool:
        job = pool.submit([user_message(CLOCK.question, [CLOCK.picture])], Sampling(max_tokens=1))
        job.wait()
    return counts(job.report)


def of_a_job() -> tuple[int, int]:
    with JobPool(slots=1, **OPTIONS) as pool:
        messages = [user_message(CLOCK.question, [CLOCK.picture])]
        job = pool.submit(messages, Sampling(max_tokens=1), **PARTS)
        job.wait()
    return counts(job.report)


def of_a_picture_that_is_shown() -> tuple[int, int]:
    with Runner(**OPTIONS) as runner:
        made = trace(runner, CLOCK.picture, [CLOCK.question], {"rule": WHOLE}, {"max_tokens": 1})
    (cut,) = made.rules[0].turns[0].stages
    return len(cut.kept), int(cut.kept.sum())


def of_an_evaluation() -> tuple[int, int]:
    asked = [Question("1", CLOCK.picture, CLOCK.question, (CLOCK.answer,))]
    answers = ask_all(asked, [WHOLE], AnswerFile(), Asking(dict(OPTIONS), max_tokens=1))
    (given,) = answers[WHOLE]
    assert given.visual is not None
    assert given.share is not None
    return given.visual, kept(given.visual, given.share)


@pytest.mark.parametrize(
    "door",
    [
        of_a_runner,
        of_its_setters,
        of_a_request,
        of_a_session,
        of_a_chat_completion,
        of_a_pool,
        of_a_job,
        of_a_picture_that_is_shown,
        of_an_evaluation,
    ],
)
def test_all_three_are_in_force(door: Callable[[], tuple[int, int]]) -> None:
    assert door() == COUNTS


def test_all_three_are_in_force_on_the_command_line(capfd: pytest.CaptureFixture[str]) -> None:
    parts = ("--schedule", PARTS["fastv"], "--turbo", PARTS["turbo"], "--reduce", PARTS["reduce"])
    assert main(["ask", str(CLOCK.picture), CLOCK.question, *parts, "--json", "-c", "1024", "-n", "1"]) == 0
    report = json.loads(capfd.readouterr().out)["report"]
    assert (report["visual_tokens"], report["visual_tokens_kept"]) == COUNTS


def test_all_three_are_planned(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--no-measure", "--settings", WHOLE, "--json"]) == 0
    cost = json.loads(capfd.readouterr().out)["models"][0]["settings"][1]
    assert (cost["visual_tokens"], kept(cost["visual_tokens"], cost["retained_share"])) == COUNTS


def test_all_three_are_in_force_in_llama_cpp_python(tmp_path: Path) -> None:
    made = script(
        tmp_path,
        f"""
llm = load(**{PARTS!r})
ask(llm, user("Read the clock.", CLOCK), max_tokens=1)
report = llm.chat_handler.report
made["counts"] = [report.visual_tokens, report.visual_tokens_kept]
""",
    )
    assert tuple(made["counts"]) == COUNTS
