"""What is passed to ask() and its like: the picture and then the question, wherever it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pyfastv import OptionError, Runner
from pyfastv.models import bundled_examples

PICTURE = np.zeros((4, 6, 3), np.uint8)
PATH = bundled_examples()[0].picture

Ask = Callable[..., object]


def of_runner(runner: Runner) -> Ask:
    return runner.ask


def of_stream(runner: Runner) -> Ask:
    return lambda *asked, **named: runner.stream(*asked, **named).read()


def of_aask(runner: Runner) -> Ask:
    return lambda *asked, **named: asyncio.run(runner.aask(*asked, **named))


def of_astream(runner: Runner) -> Ask:
    async def ask(*asked: Any, **named: Any) -> list[str]:
        return [piece async for piece in runner.astream(*asked, **named)]

    return lambda *asked, **named: asyncio.run(ask(*asked, **named))


def of_session(runner: Runner) -> Ask:
    return runner.session().ask


def of_session_stream(runner: Runner) -> Ask:
    return lambda *asked, **named: runner.session().stream(*asked, **named).read()


every_way = pytest.mark.parametrize(
    "way", [of_runner, of_stream, of_aask, of_astream, of_session, of_session_stream]
)


def prompt(runner: Runner) -> str:
    """The last of a fake engine, with * for a picture."""
    engine: Any = runner._engine
    *_, made = (arguments["prompt"] for name, arguments in engine.calls if name == "prefill")
    return str(made.replace(engine.media_marker, "*"))


@every_way
@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ((PICTURE, "Q?"), {}),
        (([PICTURE], "Q?"), {}),
        ((str(PATH), "Q?"), {}),
        ((PICTURE,), {"question": "Q?"}),
        ((str(PATH),), {"question": "Q?"}),
        ((), {"image": PICTURE, "question": "Q?"}),
        (("Q?",), {"image": PICTURE}),
        # only one of the two can be a question
        (("Q?", PICTURE), {}),
        (("Q?", [PICTURE]), {}),
        (("Q?", PATH), {}),
        (("Q?", PATH.read_bytes()), {}),
    ],
)
def test_a_picture_and_a_question(
    fake_runner: Runner, way: Callable[[Runner], Ask], asked: tuple[Any, ...], named: dict[str, Any]
) -> None:
    way(fake_runner)(*asked, **named)
    assert prompt(fake_runner) == "USER: *\nQ? ASSISTANT:"


@every_way
@pytest.mark.parametrize("asked", [("Q?",), (None, "Q?"), ("Q?", None)])
def test_a_question_alone(fake_runner: Runner, way: Callable[[Runner], Ask], asked: tuple[Any, ...]) -> None:
    way(fake_runner)(*asked)
    assert prompt(fake_runner) == "USER: Q? ASSISTANT:"


@every_way
def test_two_texts_the_other_way_round_are_refused_with_the_right_way(
    fake_runner: Runner, way: Callable[[Runner], Ask]
) -> None:
    with pytest.raises(OptionError, match="the picture comes first, then the question") as caught:
        way(fake_runner)("Q?", str(PATH))
    assert f"ask({str(PATH)!r}, 'Q?')" in str(caught.value)


@every_way
@pytest.mark.parametrize(
    ("asked", "named", "says"),
    [
        ((PICTURE, PICTURE, "Q?"), {}, r"takes two things, and got 3: several pictures are a list"),
        ((PICTURE, "Q?"), {"image": PICTURE}, "image is given twice"),
        ((PICTURE, "Q?"), {"question": "Q?"}, "question is given twice"),
        ((PICTURE,), {}, "question must be a string; got None"),
        ((PICTURE, 5), {}, "question must be a string; got 5"),
        ((), {"image": PICTURE}, "question must be a string; got None"),
    ],
)
def test_what_cannot_be_asked_is_told(
    fake_runner: Runner,
    way: Callable[[Runner], Ask],
    asked: tuple[Any, ...],
    named: dict[str, Any],
    says: str,
) -> None:
    with pytest.raises(OptionError, match=says):
        way(fake_runner)(*asked, **named)


@pytest.mark.parametrize("picture", [str(PATH), "data:image/png;base64,AAAA"])
def test_a_picture_without_a_question_is_no_question(fake_runner: Runner, picture: str) -> None:
    """A session takes any text alone for the question: whoever chats types what he likes."""
    with pytest.raises(OptionError, match="is a picture, and there is no question"):
        fake_runner.ask(picture)
    fake_runner.ask(question=picture)
    fake_runner.session().ask(picture)
    assert prompt(fake_runner) == f"USER: {picture} ASSISTANT:"
