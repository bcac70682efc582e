"""What a model's preprocessor makes of a picture of some size, of several families with random weights: told beforehand
as it comes to be, and within a budget."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import pytest

import pyfastv
from pyfastv import ContextLengthError, ImageError, OptionError
from pyfastv.inputs.budget import Budget
from pyfastv.inputs.messages import user_message

import random_mmproj
from random_mmproj import FAMILIES, PATCH, QWEN

SIZES = [(224, 168), (168, 224), (30, 20), (500, 300), (100, 700), (1, 1)]
RNG = np.random.default_rng(5)

# these make the same of every picture
FIXED = ("LLaVA", "Janus-Pro", "Gemma 3")


def picture(width: int, height: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


class Case(NamedTuple):
    name: str
    runner: pyfastv.Runner

    @property
    def engine(self) -> Any:
        return self.runner._engine

    @property
    def fixed(self) -> bool:
        return self.name in FIXED


# llama.cpp's graph of Pixtral clears a tensor that nobody has written by multiplying it with 0, which a NaN survives: now
# and then its encoder makes no finite numbers
@pytest.fixture(scope="module", params=[name for name in FAMILIES if name != "Pixtral"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    model, mmproj = random_mmproj.write_pair(tmp_path_factory.mktemp("shapes"), request.param)
    with pyfastv.Runner(model, mmproj, n_ctx=1024, n_threads=1, fastv=None) as runner:
        yield Case(request.param, runner)


@pytest.mark.parametrize("size", SIZES)
def test_what_is_told_is_what_the_encoder_sees(case: Case, size: tuple[int, int]) -> None:
    for enlarge in (True, False):
        tokens, n_slices, width, height = case.engine.picture_shape(*size, enlarge)
        seen = case.engine.pixels(picture(*size), enlarge)
        assert len(seen) == n_slices
        assert seen[0].shape == (height, width, 3)
        if enlarge:
            made = case.engine.embed(picture(*size), f"{size}")
            assert sum(map(len, made)) == tokens


def by_hand(name: str, width: int, height: int, enlarge: bool) -> tuple[int, int] | None:
    """Tokens and slices by the rules that these models were published with; None: of another family."""
    family = FAMILIES[name]
    if name in FIXED:
        return math.prod(family.grids[0]), 1
    if name == "SmolVLM":
        edge = 224 if enlarge else min(224, max(width, height))
        scale = edge / max(width, height)
        nx, ny = (math.ceil(max(1.0, side * scale) / 112) for side in (width, height))
        n = 1 if not enlarge and nx == ny == 1 else nx * ny + 1
        return 16 * n, n
    if family.projector in QWEN:
        unit, least = 2 * PATCH, 8  # at most 4096: none of these pictures has so many
        nx, ny = (max(1, math.floor(side / unit + 0.5)) for side in (width, height))
        if nx * ny < least:
            beta = math.sqrt(least * unit**2 / (width * height))
            nx, ny = (math.ceil(side * beta / unit) for side in (width, height))
        return nx * ny, 1
    return None


@pytest.mark.parametrize("size", [*SIZES, (1000, 1000), (900, 120)])
def test_counts_are_those_of_the_published_rules(case: Case, size: tuple[int, int]) -> None:
    for enlarge in (True, False):
        expected = by_hand(case.name, *size, enlarge)
        if expected is not None:
            assert case.engine.picture_shape(*size, enlarge)[:2] == expected


def test_a_small_picture_is_one_tile_where_it_is_not_enlarged(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    model, mmproj = random_mmproj.write_pair(tmp_path_factory.mktemp("small"), "SmolVLM")
    icon = picture(60, 40)
    with pyfastv.Runner(model, mmproj, n_ctx=512, n_threads=1, fastv=None) as runner:
        stock, own = (
            runner.ask(icon, "What is it?", max_tokens=1, enlarge=enlarge).report.pictures[0]
            for enlarge in (True, False)
        )
        assert (stock.tiles, own.tiles) == (5, 1)
        assert (stock.tokens, own.tokens) == (80, 16)
        # of a tile of the same picture nothing is taken for that of the other
        again = runner.ask(icon, "What is it?", max_tokens=1).report
        assert again.pictures[0] == stock
        assert again.encoded_tokens == stock.tokens
        # the overview is what it is in stock
        np.testing.assert_array_equal(
            runner._engine.pixels(picture(112, 112) * 0 + icon[0, 0], False)[0],
            runner._engine.pixels(picture(112, 112) * 0 + icon[0, 0], True)[-1],
        )


def test_a_budget_holds_and_is_reported(case: Case) -> None:
    given = picture(400, 300)
    natural = case.engine.picture_shape(400, 300, False)[0]
    ask: Any = {"max_tokens": 1}
    if case.fixed:
        with pytest.raises(OptionError, match=f"at least {natural}, scaled down as far as it goes"):
            case.runner.ask(given, "What is it?", image_tokens=natural - 1, **ask)
        most = natural
    else:
        most = max(case.engine.picture_shape(1, 1, False)[0], natural // 2)
    report = case.runner.ask(given, "What is it?", image_tokens=most, **ask).report
    (seen,) = report.pictures
    assert report.encoded_tokens == report.patches == seen.tokens <= most
    assert seen.size == (400, 300)
    assert abs(seen.scaled[0] * 300 / 400 - seen.scaled[1]) <= 1
    assert seen.was_scaled == (not case.fixed)
    # and the next question is as if there had been none
    plain = case.runner.ask(given, "What is it?", **ask).report
    assert plain.encoded_tokens == case.engine.picture_shape(400, 300, True)[0]


def test_without_a_budget_the_engine_gets_the_picture_as_it_is(case: Case) -> None:
    prompt = case.runner._model.render([user_message("What?", [given := picture(90, 70)])])
    made = case.runner._model.request(prompt, case.runner.setting, Budget())
    np.testing.assert_array_equal(made.keywords["images"][0], given)
    assert made.keywords["enlarge"] == [True]
    assert not made.pictures[0].was_scaled


@pytest.mark.parametrize("size", [(1, 1), (1, 30_000), (30_000, 1)])
@pytest.mark.parametrize("tokens", [1, 200])
def test_sizes_that_nobody_thinks_of_have_an_answer_or_an_error(case: Case, size: Any, tokens: int) -> None:
    with suppress(ImageError, OptionError, ContextLengthError):
        report = case.runner.ask(picture(*size), "What is it?", max_tokens=1, image_tokens=tokens).report
        assert report.encoded_tokens <= tokens
    assert case.runner.ask(picture(30, 30), "What is it?", max_tokens=1).report.generated_tokens <= 1


def test_a_budget_above_the_context_is_told_with_both_numbers(case: Case) -> None:
    with pytest.raises(OptionError, match=r"5000 tokens.*n_ctx is 1024"):
        case.runner.ask(picture(30, 30), "What is it?", image_tokens=(1, 5000))


def test_frames_of_a_video_have_the_budget_each(tmp_path_factory: pytest.TempPathFactory) -> None:
    model, mmproj = random_mmproj.write_pair(tmp_path_factory.mktemp("frames"), "Qwen2-VL")
    frames = [pyfastv.Frame(picture(224, 168), "clip", number) for number in range(2)]
    with pyfastv.Runner(model, mmproj, n_ctx=512, n_threads=1, fastv=None) as runner:
        counts = [
            runner.ask(frames, "What happens?", max_tokens=1, **budget).report.encoded_tokens
            for budget in ({}, {"image_tokens": 20}, {})
        ]
    # 8 x 6 tokens of the two, which are encoded as one, and 5 x 4 where they are scaled
    assert counts == [48, 20, 48]
