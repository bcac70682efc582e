"""Requests that bring schedules of their own: those with cuts at the same layers share a context, and each comes to what
it comes to alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from pyfastv import FastV, OptionError, Recommended, Runner, Sampling, UnsupportedModelError, _native
from pyfastv.commands.demo import same_answer
from pyfastv.engine.job_pool import JobPool
from pyfastv.inputs.chat import user_message
from pyfastv.models import bundled_examples

import random_mmproj

CLOCK = bundled_examples()[0]
RNG = np.random.default_rng(3)
PICTURES = [RNG.integers(0, 256, (168, 224, 3), dtype=np.uint8) for _ in range(2)]
GREEDY: dict[str, Any] = {"max_tokens": 6, "temperature": 0.0, "grammar": "root ::= [ -~]+"}
ENDLESS = Sampling(grammar="root ::= [a-z ] root")
EXACT: dict[str, Any] = {"flash_attn": "off", "type_k": "f32", "type_v": "f32", "n_threads": 1, "n_ctx": 256}

# with windows, and without
LAYERS = {"LLaVA": (2, 3), "Gemma 3": (6, 12)}
RULES = [
    "drop=0.5,score=last",
    "drop=0.75,score=question-max,pick=cover,weigh",
    "drop=0.25,score=none,merge",
    None,
]


class Outcome(NamedTuple):
    """What came of a request."""

    text: bytes
    kept: list[int]
    scores: np.ndarray


@pytest.fixture(scope="module", params=LAYERS)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def files(family: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return random_mmproj.write_pair(tmp_path_factory.mktemp("model"), family)


Make = Callable[..., Any]


@pytest.fixture
def make(files: tuple[Path, Path]) -> Iterator[Make]:
    made = []

    def make(n_slots: int = 1) -> Any:
        made.append(
            _native.Engine(
                model_path=files[0], mmproj_path=files[1], n_slots=n_slots, encoder_cache_bytes=2**24, **EXACT
            )
        )
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def spec(family: str, rule: str | None, layer: int = 0) -> str:
    return "" if rule is None else f"k={LAYERS[family][layer]},{rule}"


def start(engine: Any, picture: int, fastv: str, question: str = "What is it?", n: int = 6) -> int:
    prompt = f"Look: {engine.media_marker}\n{question}"
    sampling = {**GREEDY, "max_tokens": n}
    return engine.start(
        engine.prepare(prompt, [PICTURES[picture]], [str(picture)], True, fastv=fastv, **sampling)
    )


def finish(engine: Any, *numbers: int) -> dict[int, dict[str, Any]]:
    """Step until these have ended: their last events, with ``text`` and ``scores``."""
    ends: dict[int, dict[str, Any]] = {}
    text: dict[int, bytes] = {}
    while not set(numbers) <= ends.keys():
        for event in engine.step():
            number = event["id"]
            text[number] = text.get(number, b"") + event["bytes"]
            if event["finish"] or event["error"]:
                assert event["error"] is None
                scores = engine.scores(0, number) if event["kept"] else np.array([])
                ends[number] = {**event, "text": text[number], "scores": scores}
    return ends


def outcome(end: dict[str, Any]) -> Outcome:
    return Outcome(end["text"], [int(i) for cut in end["kept"] for i in cut], end["scores"])


def alone(make: Make, picture: int, fastv: str, question: str = "What is it?") -> Outcome:
    engine = make()
    number = start(engine, picture, fastv, question)
    return outcome(finish(engine, number)[number])


def assert_same(found: Outcome, expected: Outcome) -> None:
    assert found[:2] == expected[:2]
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


def test_two_run_side_by_side_as_each_alone(make: Make, family: str) -> None:
    """Every pair of rules, the off one included, in one engine that keeps its context."""
    engine = make(n_slots=2)
    engine.set_fastv(spec(family, RULES[0]))
    expected = [[alone(make, picture, spec(family, rule)) for rule in RULES] for picture in (0, 1)]
    assert len({len(each.kept) for each in expected[0]}) == 4
    for i in range(len(RULES)):
        for j in range(i):
            numbers = [start(engine, 0, spec(family, RULES[i])), start(engine, 1, spec(family, RULES[j]))]
            assert engine.n_idle == 0
            ends = finish(engine, *numbers)
            assert_same(outcome(ends[numbers[0]]), expected[0][i])
            assert_same(outcome(ends[numbers[1]]), expected[1][j])
            assert ends[numbers[0]]["report"].first_layers == (
                [0] if RULES[i] is None else [0, LAYERS[family][0]]
            )


def test_what_was_chosen_by_another_rule_is_not_gone_on_from(make: Make, family: str) -> None:
    """The text before it is."""
    engine = make()
    first, second = spec(family, RULES[0]), spec(family, RULES[1])
    cached = []
    for fastv in (first, second, second, first):
        number = start(engine, 0, fastv, "And what is that?")
        end = finish(engine, number)[number]
        assert_same(outcome(end), alone(make, 0, fastv, "And what is that?"))
        cached.append(end["report"].cached_tokens)
    assert 0 < cached[1] == cached[3] < 16
    assert cached[2] > cached[1] + 64  # the picture


def test_a_slot_of_each_rule_is_gone_on_from(make: Make, family: str) -> None:
    """A chat that goes to another rule and back finds what it had, and no picture is encoded again."""
    engine = make(n_slots=2)
    reports = []
    for rule in (RULES[0], RULES[1], RULES[0], RULES[1], None):
        number = start(engine, 0, spec(family, rule))
        reports.append(finish(engine, number)[number]["report"])
    assert [report.pictures_encoded for report in reports] == [1, 0, 0, 0, 0]
    assert [report.cached_tokens > 64 for report in reports] == [False, False, True, True, False]


def test_other_layers_fit_when_nobody_is_computed(make: Make, family: str) -> None:
    engine = make(n_slots=2)
    here, there = spec(family, RULES[0]), spec(family, RULES[1], 1)
    engine.set_fastv(here)
    number = start(engine, 0, here)
    assert engine.fits(spec(family, RULES[1]))
    assert engine.fits("")
    assert not engine.fits(there)
    assert not engine.fits(f"{here},cells=256")
    with pytest.raises(OptionError, match="no request runs; 1 do"):
        start(engine, 1, there)
    assert_same(outcome(finish(engine, number)[number]), alone(make, 0, here))
    number = start(engine, 1, there)
    end = finish(engine, number)[number]
    assert end["report"].first_layers == [0, LAYERS[family][1]]
    assert_same(outcome(end), alone(make, 1, there))
    assert engine.fits(there)
    assert not engine.fits(here)
    with pytest.raises(OptionError, match="99"):
        engine.fits("k=99")


def test_a_pool_computes_them_side_by_side(files: tuple[Path, Path], family: str) -> None:
    """One of the first rule generates all the while."""
    options: dict[str, Any] = {"n_ctx": 256, "n_threads": 1, "flash_attn": False}
    asked = [user_message("What is it?", PICTURES[1])]
    few = Sampling(max_tokens=4, grammar="root ::= [a-z ] root")
    expected = {}
    for rule in RULES:
        with JobPool(*files, slots=1, fastv=spec(family, rule) or None, **options) as pool:
            job = pool.submit(asked, few, details=True)
            expected[rule] = (job.read(), job.details["kept"])
    with JobPool(*files, slots=2, fastv=spec(family, RULES[0]), **options) as pool:
        running = pool.submit(
            [user_message("Hello", PICTURES[0])], Sampling(grammar="root ::= [a-z ] root", max_tokens=150)
        )
        next(iter(running))
        for rule in RULES[1:]:
            job = pool.submit(asked, few, fastv=spec(family, rule) or None, details=True)
            assert job.wait(20)
            assert not running.done
            assert (job.read(), job.details["kept"]) == expected[rule]
            assert job.report.cached_tokens < 64
        running.cancel()


# the bundled model


def test_a_chat_keeps_what_it_has_while_the_rule_changes() -> None:
    with Runner(n_slots=2, n_ctx=1024, n_threads=1, fastv=FastV(2, 0.5)) as runner:
        reports = []
        for fastv in (
            FastV(2, 0.5),
            Recommended(2, 0.75),
            FastV(2, 0.5),
            Recommended(2, 0.75),
            FastV(4, 0.5),
        ):
            answer = runner.ask(CLOCK.picture, CLOCK.question, fastv=fastv)
            assert same_answer(answer.text, CLOCK.answer)
            reports.append(answer.report)
    assert [report.visual_tokens_kept for report in reports] == [288, 144, 288, 144, 288]
    assert [report.pictures_encoded for report in reports] == [1, 0, 0, 0, 0]
    assert [report.cached_tokens > 576 for report in reports] == [False, False, True, True, False]


def test_a_stream_goes_on_beside_a_request_with_another_rule() -> None:
    async def both(runner: Runner) -> list[str]:
        answers = [
            runner.aask(CLOCK.picture, CLOCK.question, fastv=fastv)
            for fastv in ("k=2,drop=0.75,score=question-max", None, "k=4")
        ]
        return [answer.text for answer in await asyncio.gather(*answers)]

    with Runner(n_slots=2, n_ctx=1024, n_threads=1) as runner:
        stream = runner.stream(CLOCK.picture, CLOCK.question)
        first = next(stream)
        assert same_answer(
            runner.ask(CLOCK.picture, CLOCK.question, fastv="k=2,drop=0.75").text, CLOCK.answer
        )
        assert same_answer(first + "".join(stream), CLOCK.answer)
        for text in asyncio.run(both(runner)):
            assert same_answer(text, CLOCK.answer)


def test_other_layers_wait_until_the_others_have_ended() -> None:
    with JobPool(slots=2, n_ctx=1024, n_threads=1, fastv=FastV(2, 0.5)) as pool:
        running = pool.submit([user_message("Hello")], ENDLESS)
        next(iter(running))
        other = pool.submit(
            [user_message(CLOCK.question, CLOCK.picture)], Sampling(), fastv=FastV(4, 0.75), details=True
        )
        assert not other.wait(0.5)
        running.cancel()
        assert same_answer(other.read(), CLOCK.answer)
        assert other.details is not None
        assert other.details["first_layers"] == [0, 4]
        assert [len(of_cut) for of_cut in other.details["kept"]] == [144]


def test_a_schedule_that_the_model_cannot_have_is_told_and_the_next_is_computed(tmp_path: Path) -> None:
    """M-RoPE, at the same layer; and windows, which give no scores, at another."""
    for name, refused, fits in (("Qwen2-VL", "k=2,score=last-no-rope", "k=2"), ("Gemma 3", "k=2", "k=6")):
        model, mmproj = random_mmproj.write_pair(tmp_path, name)
        engine = _native.Engine(model_path=model, mmproj_path=mmproj, **EXACT)
        kept = []
        for _ in range(2):
            number = start(engine, 0, fits)
            kept.append(outcome(finish(engine, number)[number]).kept)
            with pytest.raises(UnsupportedModelError, match=r"M-RoPE|sliding window"):
                start(engine, 0, refused)
            assert engine.idle
        assert kept[0] == kept[1] != []
        engine.close()
