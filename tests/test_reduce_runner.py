"""Reducers in a runner: the bundled model answers, and what is known of a picture is used again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from pyfastv import (
    EVS,
    CDPruner,
    ContextLengthError,
    DivPrune,
    FastV,
    Merge,
    OptionError,
    PLLaVA,
    Pool,
    Recommended,
    Reducer,
    Runner,
    Stride,
    VidCom2,
)
from pyfastv.commands.demo import same_answer
from pyfastv.commands.main import main
from pyfastv.models import bundled_examples

CLOCK = bundled_examples()[0]
DICE = next(example for example in bundled_examples() if example.question == "What color are the dice?")


@pytest.fixture(scope="module")
def off() -> Iterator[Runner]:
    """Neither a schedule nor a reducer, where a test gives none."""
    with Runner(fastv=None) as runner:
        yield runner


@pytest.fixture(scope="module")
def n_unreduced(off: Runner) -> int:
    """Tokens of the prompt of DICE."""
    return off.ask(DICE.picture, DICE.question, max_tokens=1).report.prompt_tokens


@pytest.mark.parametrize(
    ("reducer", "n"),
    [
        (Pool(2), 144),
        (Pool(keep=288), 288),
        (Stride(0.5), 288),
        (Merge(288), 288),
        (Merge(288, scale=True), 288),
        (DivPrune(288), 288),
        (CDPruner(288), 288),
        (VidCom2(288), 288),
        (EVS(0.7), 576),  # one frame: nothing to compare it with
        (PLLaVA(4, 2), 144),
    ],
    ids=str,
)
def test_every_reducer_answers_a_simple_question(
    off: Runner, n_unreduced: int, reducer: Reducer, n: int
) -> None:
    answer = off.ask(DICE.picture, DICE.question, reduce=reducer)
    assert same_answer(answer.text, DICE.answer)
    report = answer.report
    assert (report.encoded_tokens, report.visual_tokens, report.visual_tokens_kept) == (576, n, n)
    assert report.reduce == reducer
    assert report.reduce_ms > 0
    assert report.prompt_tokens == n_unreduced - 576 + n


@pytest.mark.parametrize("fastv", [Recommended(), FastV(2, 0.5), "pyramiddrop"], ids=str)
def test_reducers_compose_with_schedules(off: Runner, fastv: Any) -> None:
    report = off.ask(
        CLOCK.picture, CLOCK.question, max_tokens=1, reduce="divprune,keep=288", fastv=fastv
    ).report
    assert report.visual_tokens_in_stage[:2] == (288, 144)
    assert report.visual_tokens == 288
    assert off._engine.grids() == [[(288, 1)]]


def test_a_pooled_picture_is_a_grid_for_the_schedule(off: Runner) -> None:
    off.ask(
        CLOCK.picture, CLOCK.question, max_tokens=1, reduce="pool,keep=288", fastv="k=2,drop=0.5,pick=window4"
    )
    assert off._engine.grids() in ([[(16, 18)]], [[(18, 16)]])


def test_the_best_composition_still_reads_the_clock(off: Runner) -> None:
    answer = off.ask(CLOCK.picture, CLOCK.question, reduce=DivPrune(288), fastv=Recommended(2, 0.5))
    assert same_answer(answer.text, CLOCK.answer)


def test_tokens_stay_where_they_were(off: Runner) -> None:
    off.ask(CLOCK.picture, CLOCK.question, max_tokens=1, reduce=Stride(144))
    assert off._engine.places().tolist() == list(range(2, 576, 4))


def test_the_runner_s_own_reducer_and_that_of_one_request() -> None:
    with Runner(fastv=None, reduce="pool,window=2") as runner:
        assert runner.reduce == Pool(2) == runner.info["reduce"]
        assert runner.ask(CLOCK.picture, CLOCK.question, max_tokens=1).report.visual_tokens == 144
        report = runner.ask(CLOCK.picture, CLOCK.question, max_tokens=1, reduce=None).report
        assert (report.visual_tokens, report.reduce) == (576, None)
        runner.set_reduce(Stride(10))
        assert runner.ask(CLOCK.picture, CLOCK.question, max_tokens=1).report.visual_tokens == 10
        made = runner.create_chat_completion(
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": str(CLOCK.picture)},
                        {"type": "text", "text": CLOCK.question},
                    ],
                }
            ],
            max_tokens=1,
            reduce="merge,keep=288",
        )
        assert made["pyfastv"]["visual_tokens"] == 288
        assert made["pyfastv"]["reduce"] == "merge,keep=288"


# what is used again


def ask(runner: Runner, question: str, reduce: Any) -> Any:
    return runner.ask(CLOCK.picture, question, max_tokens=2, reduce=reduce).report


def test_a_picture_is_reused_only_where_it_was_reduced_the_same() -> None:
    with Runner(fastv=None) as runner:
        assert ask(runner, "Read the clock.", DivPrune(288)).cached_tokens == 0
        same = ask(runner, "Is the clock digital?", DivPrune(288))
        assert same.cached_tokens > 288
        assert (same.pictures_encoded, same.pictures_from_cache, same.reduce_ms) == (0, 0, 0.0)
        for other in (DivPrune(144), DivPrune(144, renumber=True), None, Pool(2), DivPrune(144)):
            report = ask(runner, "Read the clock.", other)
            assert report.cached_tokens < 20, other
            assert (report.pictures_encoded, report.pictures_from_cache) == (0, 1)


def test_with_cdpruner_the_question_has_to_be_the_same() -> None:
    with Runner(fastv=None) as runner:
        ask(runner, "Read the clock.", CDPruner(144))
        first = runner._engine.places().tolist()
        assert ask(runner, "Read the clock.", CDPruner(144)).cached_tokens > 144
        other = ask(runner, "What color is the background?", CDPruner(144))
        assert other.cached_tokens < 20
        assert runner._engine.places().tolist() != first
        ask(runner, "Read the clock.", CDPruner(144))
        assert runner._engine.places().tolist() == first


@pytest.mark.parametrize(
    ("reducer", "fastv"),
    [(DivPrune(288), None), (CDPruner(288), Recommended()), (CDPruner(288), None), (Pool(2), Recommended())],
    ids=str,
)
def test_a_conversation_goes_on_with_the_reduced_picture(reducer: Reducer, fastv: Any) -> None:
    with Runner(fastv=fastv, reduce=reducer) as runner, runner.session() as chat:
        first = chat.ask(DICE.question, DICE.picture, max_tokens=4)
        second = chat.ask("What color is the background?", max_tokens=2).report
        assert second.cached_tokens >= first.report.visual_tokens
        assert second.pictures_encoded == second.pictures_from_cache == 0
        assert second.visual_tokens == first.report.visual_tokens
        assert second.encoded_tokens == 576


def test_generation_after_reuse_is_that_of_a_new_runner() -> None:
    with Runner(fastv=None, reduce="merge,keep=200", n_threads=1) as runner:
        runner.ask(CLOCK.picture, "What color is the background?")
        again = runner.ask(CLOCK.picture, CLOCK.question).text
    with Runner(fastv=None, reduce="merge,keep=200", n_threads=1) as runner:
        assert runner.ask(CLOCK.picture, CLOCK.question).text == again


def test_several_pictures_are_reduced_one_by_one(off: Runner) -> None:
    pictures = [CLOCK.picture, DICE.picture, CLOCK.picture]
    report = off.ask(pictures, "What is this?", max_tokens=1, reduce=DivPrune(100)).report
    assert (report.encoded_tokens, report.visual_tokens) == (3 * 576, 300)
    places = off._engine.places().tolist()
    assert places[:100] == places[200:] != places[100:200]


# limits


def test_what_counts_for_the_context_is_what_is_left() -> None:
    with Runner(n_ctx=512, fastv=None) as runner:
        with pytest.raises(ContextLengthError, match="576 of them visual"):
            runner.ask(CLOCK.picture, CLOCK.question)
        assert same_answer(runner.ask(CLOCK.picture, CLOCK.question, reduce=DivPrune(400)).text, CLOCK.answer)


def test_a_reducer_that_is_wrong_leaves_the_runner_usable(off: Runner) -> None:
    with pytest.raises(OptionError, match="no reducer"):
        off.ask(CLOCK.picture, CLOCK.question, reduce="blur")
    with pytest.raises(OptionError, match="reduce must be"):
        Runner(reduce=5)  # type: ignore[arg-type]
    assert same_answer(off.ask(CLOCK.picture, CLOCK.question).text, CLOCK.answer)


def test_progress_only_grows_and_ends_at_the_whole_prompt(off: Runner) -> None:
    seen: list[tuple[int, int]] = []
    pictures = [DICE.picture, CLOCK.picture]
    options: Any = {"max_tokens": 1, "reduce": DivPrune(123)}
    report = off.ask(
        pictures, "Now?", progress=lambda done, all_: seen.append((done, all_)), **options
    ).report
    done = [d for d, _ in seen]
    assert done == sorted(done)
    assert seen[-1] == (report.prompt_tokens, report.prompt_tokens)


def test_from_the_shell(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["ask", str(DICE.picture), DICE.question, "--off", "--json"]
    assert main([*options, "--reduce", "divprune,keep=288"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert same_answer(printed["answer"], DICE.answer)
    assert printed["report"]["visual_tokens"] == 288
    assert printed["report"]["reduce"] == "divprune,keep=288"
    assert main([*options, "--reduce", "divprune"]) == 2
    assert "needs keep=" in capsys.readouterr().err
