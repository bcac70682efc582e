"""The budget of a picture (pyfastv/inputs/budget.py): what it is, and the size that is found for it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pyfastv import OptionError
from pyfastv.inputs.budget import (
    LOW_DETAIL_TOKENS,
    Budget,
    Fitted,
    Shape,
    as_seen,
    fit,
    scaled,
    tokens_of_text,
)
from pyfastv.inputs.messages import parse_messages

UNIT = 28


def grid(width: int, height: int) -> Shape:
    """A token for every 28 x 28 pixels, at least 4 of them."""
    nx, ny = (max(2, math.ceil(side / UNIT)) for side in (width, height))
    return Shape(nx * ny, 1, nx * UNIT, ny * UNIT)


def tiles(width: int, height: int) -> Shape:
    """64 tokens for a tile of 512, and for an overview beside several."""
    nx, ny = (math.ceil(side / 512) for side in (width, height))
    n = 1 if nx * ny == 1 else nx * ny + 1
    return Shape(64 * n, n, 512, 512)


def fixed(width: int, height: int) -> Shape:
    return Shape(576, 1, 336, 336)


SIZES = [(1, 1), (1, 30_000), (30_000, 1), (640, 480), (480, 640), (1000, 1000), (3000, 200), (6000, 4000)]


@pytest.mark.parametrize(
    ("image_tokens", "expected"), [(256, (1, 256)), ((64, 256), (64, 256)), ([8, 8], (8, 8))]
)
def test_a_number_is_the_most_and_two_are_the_least_and_the_most(image_tokens: Any, expected: Any) -> None:
    made = Budget.of(image_tokens)
    assert (made.least, made.most) == expected
    assert not made.enlarge
    text = "-".join(map(str, image_tokens if isinstance(image_tokens, (list, tuple)) else [image_tokens]))
    assert Budget.of(text) == made


@pytest.mark.parametrize(
    "wrong",
    [
        0,
        -1,
        True,
        math.nan,
        2.5,
        2**31,
        10**400,
        "",
        "many",
        "-5",
        "1-2-3",
        "٣",
        "9" * 5000,
        (),
        (1,),
        (5, 4),
        (0, 9),
        {},
        b"9",
    ],
)
def test_what_is_no_budget_is_told_by_name(wrong: Any) -> None:
    with pytest.raises(OptionError, match="image_tokens"):
        Budget.of(wrong)


@pytest.mark.parametrize("wrong", [0, 1, "no", math.nan, []])
def test_enlarge_is_true_or_false(wrong: Any) -> None:
    with pytest.raises(OptionError, match="enlarge"):
        Budget.of(None, wrong)


def test_nothing_is_enlarged_where_a_budget_is_given_and_nothing_else_said() -> None:
    assert Budget.of() == Budget()
    assert Budget().is_off
    assert Budget.of(100).enlarge is False
    assert Budget.of(100, True).enlarge is True
    assert Budget.of(None, False) == Budget(enlarge=False)
    # a request that is silent has the default; one that speaks has none of it
    default = Budget.of((10, 20))
    assert Budget.of(None, None, default) == default
    assert Budget.of(None, True, default) == Budget(10, 20, True)
    assert Budget.of(7, None, default) == Budget(1, 7, False)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("shape_of", "most"), [(grid, 4), (grid, 256), (tiles, 64), (tiles, 400)])
def test_no_picture_has_more_than_the_most(size: tuple[int, int], shape_of: Any, most: int) -> None:
    found = fit(*size, Budget(most=most), shape_of)
    assert found.shape == shape_of(found.width, found.height)
    assert found.shape.tokens <= most
    assert found.width <= size[0]
    assert found.height <= size[1]
    if shape_of(*size).tokens <= most:
        assert (found.width, found.height) == size


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1000, 1000), (6000, 4000)])
@pytest.mark.parametrize(("shape_of", "most"), [(grid, 100), (tiles, 400)])
def test_the_aspect_is_kept_and_no_larger_size_would_do(size: Any, shape_of: Any, most: int) -> None:
    found = fit(*size, Budget(most=most), shape_of)
    assert abs(found.width * size[1] / size[0] - found.height) <= 1
    best = next(
        edge
        for edge in range(max(size), 0, -1)
        if shape_of(*(max(1, round(side * edge / max(size))) for side in size)).tokens <= most
    )
    assert max(found.width, found.height) == pytest.approx(best, abs=2)


def test_a_size_is_found_that_the_preprocessor_need_not_change() -> None:
    """Up to the part of a unit that the aspect leaves."""
    found = fit(3000, 2000, Budget(most=100), grid)
    width, height = found.shape.width, found.shape.height
    assert found.width == width or found.height == height
    assert found.width <= width
    assert found.height <= height


def test_a_picture_with_too_few_is_enlarged() -> None:
    found = fit(100, 50, Budget(50, 60), grid)
    assert 50 <= found.shape.tokens <= 60
    assert found.width > 100
    assert abs(found.width / 2 - found.height) <= 1
    assert fit(1, 1, Budget(100), grid).shape.tokens == 100


@pytest.mark.parametrize(
    ("size", "budget", "shape_of", "told"),
    [
        ((640, 480), Budget(most=1), grid, r"at most 1 tokens.*640 x 480.*at least 4"),
        ((640, 480), Budget(most=100), fixed, r"at most 100 tokens.*at least 576"),
        ((640, 480), Budget(600), fixed, r"at least 600 tokens.*no more than 576"),
        ((2000, 2000), Budget(70, 200), tiles, r"no size.*70 to 200 tokens: the next have 64 and 320"),
        ((100, 100), Budget(70, 200), tiles, r"no size.*70 to 200 tokens: the next have 64 and 320"),
        ((640, 480), Budget(most=100, enlarge=True), fixed, "enlarge"),
    ],
)
def test_what_a_model_cannot_have_is_told_with_its_numbers(
    size: Any, budget: Budget, shape_of: Any, told: str
) -> None:
    with pytest.raises(OptionError, match=told):
        fit(*size, budget, shape_of)


def test_openai_s_detail_is_a_budget_that_a_model_need_not_have() -> None:
    assert (
        Budget().with_detail(None) == Budget().with_detail("high") == Budget().with_detail("auto") == Budget()
    )
    low = Budget().with_detail("low")
    assert low.most == LOW_DETAIL_TOKENS
    assert fit(6000, 4000, low, grid).shape.tokens <= LOW_DETAIL_TOKENS
    assert fit(6000, 4000, low, fixed).shape.tokens == 576
    assert Budget.of(100).with_detail("low") == Budget.of(100)
    assert Budget.of((300, 400)).with_detail("low").most == LOW_DETAIL_TOKENS
    with pytest.raises(OptionError, match="detail must be one of low, high"):
        Budget().with_detail("tiny")


def test_a_message_s_detail_goes_with_its_picture() -> None:
    def pictures(**picture: Any) -> list[Any]:
        part = {"type": "image_url", "image_url": {"url": "a.png", **picture}}
        return parse_messages([{"role": "user", "content": [part]}])[1]

    assert pictures() == pictures(detail="high") == pictures(detail=None) == ["a.png"]
    assert pictures(detail="low") == [("a.png", "low")]
    with pytest.raises(OptionError, match="detail"):
        pictures(detail=5)


def test_what_is_not_scaled_is_the_same_picture() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)
    assert scaled(picture, 60, 40) is picture
    same, told = as_seen(picture, Budget(), lambda w, h, budget: fit(w, h, budget, grid))
    assert same is picture
    assert told is not None
    assert not told.was_scaled
    assert (told.size, told.tile, told.tokens) == ((60, 40), (84, 56), 6)


def test_a_picture_is_resampled_as_pillow_does() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (400, 600, 3), np.uint8)
    made, told = as_seen(picture, Budget(most=24), lambda w, h, budget: fit(w, h, budget, grid))
    assert told is not None
    width, height = told.scaled
    assert made.shape == (height, width, 3)
    assert made.flags.c_contiguous
    expected = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(made, np.asarray(expected))
    assert "600 x 400, scaled to" in str(told)
    assert "24 tokens" in str(told)
    assert told.to_dict()["scaled"] == [width, height]


@pytest.mark.parametrize("text", ["256", "64-256", " 64 - 256"])
def test_text_of_the_command_line(text: str) -> None:
    assert tokens_of_text(text) == (256 if "-" not in text else (64, 256))


def test_a_fitted_size_is_a_plain_value() -> None:
    assert Fitted(1, 2, Shape(3, 4, 5, 6)).shape.tokens == 3
