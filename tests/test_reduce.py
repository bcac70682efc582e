"""The reducers on arrays: against the same rules in NumPy, and what holds for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfastv import (
    EVS,
    CDPruner,
    DivPrune,
    Merge,
    OptionError,
    PLLaVA,
    Pool,
    Reducer,
    Stride,
    VidCom2,
    _native,
)
from pyfastv.settings.reduce import REDUCERS, to_reducer

import reduce_reference as reference

GRIDS = [(4, 3), (4, 3), (4, 3)]
Case = tuple[Reducer, Callable[[Any, Any, Any], reference.Reduced]]

CASES: list[Case] = [
    (Pool(2), lambda x, g, q: reference.pool(x, g, 2)),
    (Pool(3), lambda x, g, q: reference.pool(x, g, 3)),
    (Stride(7), lambda x, g, q: reference.stride(x, 7)),
    (Stride(0.35), lambda x, g, q: reference.stride(x, 0.35)),
    (Merge(30), lambda x, g, q: reference.merge(x, 30)),
    (Merge(0.25, scale=True), lambda x, g, q: reference.merge(x, 0.25, scale=True)),
    (DivPrune(9), lambda x, g, q: reference.divprune(x, 9)),
    (DivPrune(0.5), lambda x, g, q: reference.divprune(x, 0.5)),
    (CDPruner(6), lambda x, g, q: reference.cdpruner(x, 6, q)),
    (CDPruner(0.5), lambda x, g, q: reference.cdpruner(x, 0.5, q)),
    (VidCom2(0.25), lambda x, g, q: reference.vidcom2(x, g, 0.25)),
    (VidCom2(30), lambda x, g, q: reference.vidcom2(x, g, 30)),
    (EVS(0.4), lambda x, g, q: reference.evs(x, g, 0.4)),
    (EVS(0.9), lambda x, g, q: reference.evs(x, g, 0.9)),
    (PLLaVA(2, 2), lambda x, g, q: reference.pllava(x, g, 2, 2)),
    (PLLaVA(8, 3), lambda x, g, q: reference.pllava(x, g, 8, 3)),
]
ALL = [case[0] for case in CASES]


def embeddings(seed: int, n: int = 36, d: int = 48) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)).astype(np.float32), rng.normal(size=d // 2).astype(np.float32)


def run(
    reducer: Reducer, x: np.ndarray, grids: Any = GRIDS, question: np.ndarray | None = None
) -> dict[str, Any]:
    return _native.reduce(x, reducer.spec(), grids=grids, question=question)


@pytest.mark.parametrize(
    ("reducer", "expected"), CASES, ids=lambda case: str(case) if isinstance(case, Reducer) else ""
)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_reducers_are_those_of_the_reference(reducer: Reducer, expected: Any, seed: int) -> None:
    x, question = embeddings(seed)
    given = run(reducer, x, question=question)
    values, place, member = expected(x.astype(np.float64), GRIDS, question.astype(np.float64))
    assert given["place"].tolist() == place
    assert given["member"].tolist() == member
    np.testing.assert_allclose(given["embeddings"], values, rtol=1e-5, atol=1e-6)


shapes = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), grids=shapes, data=st.data())
def test_what_holds_for_every_reducer(seed: int, grids: Any, data: Any) -> None:
    reducer = data.draw(st.sampled_from(ALL))
    if isinstance(reducer, EVS | PLLaVA):
        grids = [grids[0]] * len(grids)
    n = sum(nx * ny for nx, ny in grids)
    x, question = embeddings(seed, n)
    made = run(reducer, x, grids, question)
    place, member = made["place"], made["member"]
    m = len(place)
    assert made["embeddings"].shape == (m, x.shape[1])
    assert 1 <= m <= n
    assert (np.diff(place) > 0).all()
    assert 0 <= place[0] <= place[-1] < n
    assert set(member.tolist()) - {-1} == set(range(m))  # nothing comes from nowhere
    assert [member[p] for p in place.tolist()].count(-1) == 0
    assert sum(nx * ny for nx, ny in made["grids"]) == m
    again = run(reducer, x, grids, question)
    assert all(np.array_equal(made[key], again[key]) for key in ("embeddings", "place", "member", "centre"))
    keep = getattr(reducer, "keep", None)
    if keep is not None:
        assert m == reference.count(keep, n)


@pytest.mark.parametrize(
    "reducer", [Stride(0.5), DivPrune(0.5), CDPruner(0.5), VidCom2(0.5), EVS(0.5)], ids=str
)
def test_selected_tokens_are_untouched(reducer: Reducer) -> None:
    x, question = embeddings(3)
    made = run(reducer, x, question=question)
    np.testing.assert_array_equal(made["embeddings"], x[made["place"]])


@pytest.mark.parametrize("scale", [False, True])
def test_merging_loses_no_token_and_counts_them(scale: bool) -> None:
    x, _ = embeddings(4)
    made = run(Merge(5, scale=scale), x)
    sizes = np.bincount(made["member"], minlength=5)
    assert sizes.sum() == len(x)
    factor = 1 + np.log(sizes) if scale else np.ones(5)
    total = (made["embeddings"] / factor[:, None] * sizes[:, None]).sum(axis=0)
    np.testing.assert_allclose(total, x.sum(axis=0), rtol=1e-4, atol=1e-4)


def test_of_equal_tokens_the_first_ones_stay() -> None:
    x = np.ones((12, 8), np.float32)
    for reducer in (DivPrune(5), CDPruner(5), VidCom2(5)):
        made = run(reducer, x, [(4, 3)], np.ones(8, np.float32))
        assert made["place"].tolist() == [0, 1, 2, 3, 4], reducer


def test_divprune_finds_the_clusters() -> None:
    rng = np.random.default_rng(5)
    centers = np.eye(4, 16) * 10
    x = np.concatenate([center + rng.normal(size=(9, 16)) * 0.1 for center in centers]).astype(np.float32)
    assert sorted(run(DivPrune(4), x)["place"] // 9) == [0, 1, 2, 3]


def test_cdpruner_takes_what_the_question_is_about() -> None:
    rng = np.random.default_rng(6)
    x = rng.normal(size=(36, 48)).astype(np.float32)
    question = x[[5, 17, 30]].mean(axis=0)
    assert {5, 17, 30} <= set(run(CDPruner(6), x, question=question)["place"].tolist())


def test_vidcom2_gives_more_to_the_frame_that_is_unlike_the_others() -> None:
    rng = np.random.default_rng(7)
    scene, other = rng.normal(size=(2, 12, 48))
    frames = [scene, scene, other, scene]
    x = np.concatenate([frame + rng.normal(size=(12, 48)) * 0.01 for frame in frames]).astype(np.float32)
    place = run(VidCom2(0.25), x, [(4, 3)] * 4)["place"]
    counts = np.bincount(place // 12, minlength=4)
    assert counts.sum() == 12
    # of four frames one has all of the softmax: 1 + 1 - 1/4 of a quarter of 12 tokens, the others 1 - 1/4
    assert counts[2] == 5
    assert sorted(counts) == [2, 2, 3, 5]


def test_evs_keeps_what_moved() -> None:
    rng = np.random.default_rng(8)
    scene = rng.normal(size=(12, 48)).astype(np.float32)
    second, third = scene.copy(), scene.copy()
    second[5], third[5], third[9] = rng.normal(size=(3, 48))
    place = run(EVS(0.5), np.concatenate([scene, second, third]), [(4, 3)] * 3)["place"].tolist()
    assert place[:12] == list(range(12))
    assert {12 + 5, 24 + 5, 24 + 9} <= set(place[12:])
    assert len(place) == 18


def test_pooled_tokens_stand_at_the_centers_of_their_windows() -> None:
    x, _ = embeddings(9, 25)
    made = run(Pool(3), x, [(5, 5)])
    assert made["centre"].tolist() == [[0, 1, 1], [0, 1, 3.5], [0, 3.5, 1], [0, 3.5, 3.5]]
    assert made["place"].tolist() == [6, 8, 16, 18]  # between two patches: the earlier
    assert made["grids"] == [(2, 2)]


@pytest.mark.parametrize(
    ("keep", "grid"), [(288, (16, 18)), (144, (12, 12)), (64, (8, 8)), (1, (1, 1)), (576, (24, 24))]
)
def test_pooling_to_a_count_takes_the_nearest_grid(keep: int, grid: tuple[int, int]) -> None:
    x, _ = embeddings(10, 576, 4)
    made = run(Pool(keep=keep), x, [(24, 24)])
    assert sorted(made["grids"][0]) == sorted(grid)
    assert (made["member"] >= 0).all()


def test_slices_of_different_sizes_are_told_apart() -> None:
    x, _ = embeddings(11, 20)
    with pytest.raises(OptionError, match=r"slices of 4 x 3 and of 4 x 2 tokens"):
        run(EVS(0.5), x, [(4, 3), (4, 2)])


def test_cdpruner_needs_a_question() -> None:
    with pytest.raises(OptionError, match="question"):
        run(CDPruner(3), embeddings(12)[0])


# text and dataclasses


@pytest.mark.parametrize(
    "reducer", [*ALL, Pool(keep=144), DivPrune(0.123456789), Stride(3, renumber=True)], ids=str
)
def test_a_spec_is_the_same_in_python_and_native(reducer: Reducer) -> None:
    assert to_reducer(reducer.spec()) == reducer
    assert to_reducer(_native.check_reducer(reducer.spec())) == reducer


def test_text_may_be_spaced_and_off() -> None:
    assert to_reducer(" divprune , keep = 288 ") == DivPrune(288)
    assert to_reducer("off") is None
    assert to_reducer("pool") == Pool(2)
    assert to_reducer("merge,keep=0.5,scale") == Merge(0.5, scale=True)


WRONG = [
    ("blur,keep=3", "no reducer"),
    ("divprune", "needs keep="),
    ("evs", "needs drop="),
    ("divprune,keep=0", "keep"),
    ("divprune,keep=1.5", "keep"),
    ("divprune,keep=nan", "keep"),
    ("divprune,keep=-3", "keep"),
    ("divprune,keep=3,keep=4", "twice"),
    ("divprune,window=3", "no field"),
    ("divprune,keep=3,scale", "no field"),
    ("merge,keep=3,scale=1", "no field"),
    ("pool,window=0", "window"),
    ("pool,window=2,keep=3", "not both"),
    ("evs,drop=1", "drop"),
    ("pllava,frames=0", "frames"),
    ("", "no reducer"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_wrong_text_is_refused_by_python_and_native(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        to_reducer(text)
    with pytest.raises(OptionError, match=message):
        _native.check_reducer(text)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DivPrune(0),
        lambda: DivPrune(True),
        lambda: DivPrune(None),  # type: ignore[arg-type]
        lambda: DivPrune(2.5),
        lambda: Pool(0),
        lambda: Pool(2, 144),
        lambda: EVS(1.0),
        lambda: PLLaVA(0),
        lambda: Merge(3, scale=1),  # type: ignore[arg-type]
        lambda: Stride(3, renumber="yes"),  # type: ignore[arg-type]
        lambda: to_reducer(3),
        lambda: Reducer(),
    ],
)
def test_wrong_values_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(OptionError):
        make()


def test_every_reducer_of_python_is_known_to_native() -> None:
    with pytest.raises(OptionError) as error:
        _native.check_reducer("none")
    assert str(error.value).rsplit("one of: ")[-1].split(", ") == list(REDUCERS)
