"""Which visual tokens stay at a cut: native/choose/choose.h, pure functions, against their definition."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import pyfastv
from pyfastv import _native

PERCENT = st.integers(0, 100)
SEEDS = st.integers(0, 2**32 - 1)
SIDES = st.integers(1, 9)
COUNTED = ["top-k", "window2", "window5", "uniform", "grid1", "grid3", "grid4"]  # mass may keep more


@dataclass(frozen=True)
class Picture:
    scores: NDArray[np.float32]
    grids: list[tuple[int, int]]
    present: NDArray[np.bool_]

    def choose(self, percent: int, pick: str) -> list[int]:
        cut = f"drop={percent / 100},pick={pick}"
        kept: list[int] = _native.choose(self.scores, cut, grids=self.grids, present=self.present).tolist()
        return kept

    @property
    def places(self) -> list[tuple[int, int, int]]:
        """(slice, y, x) of every token."""
        return [
            (slice, y, x) for slice, (nx, ny) in enumerate(self.grids) for y in range(ny) for x in range(nx)
        ]

    @property
    def ranked(self) -> list[int]:
        """Those present, highest score first."""
        return sorted(np.flatnonzero(self.present).tolist(), key=lambda i: (-self.scores[i], i))

    def kept_count(self, percent: int) -> int:
        return min(kept_count(len(self.scores), percent), int(self.present.sum()))


def kept_count(n: int, percent: int) -> int:
    return 0 if percent == 100 else max(1, round(Fraction(n * (100 - percent), 100)))


def spread(tokens: list[int], count: int) -> list[int]:
    """The middles of `count` equal parts."""
    return [tokens[int(Fraction(2 * i + 1, 2 * count) * len(tokens))] for i in range(count)]


def random_picture(
    grids: list[tuple[int, int]], levels: int, seed: int, share_present: float = 1.0
) -> Picture:
    """The fewer levels, the more equal scores."""
    rng = np.random.default_rng(seed)
    n = sum(nx * ny for nx, ny in grids)
    scores = (rng.integers(0, levels, n) / levels).astype(np.float32)
    return Picture(scores, grids, rng.random(n) < share_present)


PICTURES = st.builds(
    random_picture,
    grids=st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=3),
    levels=st.sampled_from([1, 3, 100_000]),
    seed=SEEDS,
    share_present=st.sampled_from([0.0, 0.1, 0.7, 1.0]),
)


# --- every pick


@given(PICTURES, PERCENT, st.sampled_from(COUNTED))
def test_the_count_is_that_of_all_tokens_or_all_present(picture: Picture, percent: int, pick: str) -> None:
    assert len(picture.choose(percent, pick)) == picture.kept_count(percent)


@given(st.integers(1, 3000), PERCENT)
def test_the_count_is_round_half_even_and_at_least_one(n: int, percent: int) -> None:
    kept = _native.choose(np.zeros(n, np.float32), f"fastv,drop={percent / 100}")
    assert len(kept) == kept_count(n, percent)


@pytest.mark.parametrize(
    ("n", "drop", "kept"),
    [
        (576, 0.5, 288),
        (576, 0.9, 58),
        (5, 0.5, 2),
        (7, 0.5, 4),
        (3, 0.99, 1),
        (3, 0.999999, 1),
        (3, 1, 0),
        (0, 0.5, 0),
    ],
)
def test_count_examples(n: int, drop: float, kept: int) -> None:
    assert len(_native.choose(np.linspace(0, 1, n, dtype=np.float32), f"fastv,drop={drop}")) == kept


@given(PICTURES, PERCENT, st.sampled_from([*COUNTED, "mass0.5"]))
def test_indices_ascend_and_are_present(picture: Picture, percent: int, pick: str) -> None:
    kept = picture.choose(percent, pick)
    assert kept == sorted(set(kept))
    assert picture.present[kept].all()


@given(PICTURES, st.sampled_from([*COUNTED, "mass0.5"]))
def test_drop_0_keeps_all_present(picture: Picture, pick: str) -> None:
    assert picture.choose(0, pick) == np.flatnonzero(picture.present).tolist()


@given(PICTURES, st.sampled_from(COUNTED))
def test_drop_1_keeps_none(picture: Picture, pick: str) -> None:
    assert picture.choose(100, pick) == []


@given(PICTURES, PERCENT, st.sampled_from([*COUNTED, "mass0.5"]))
def test_scores_of_absent_tokens_do_not_matter(picture: Picture, percent: int, pick: str) -> None:
    scores = np.where(picture.present, picture.scores, np.float32(1e9))
    assert Picture(scores, picture.grids, picture.present).choose(percent, pick) == picture.choose(
        percent, pick
    )


@given(PICTURES, PERCENT, PERCENT, st.sampled_from(["top-k", "window2", "mass0.5"]))
def test_a_higher_drop_keeps_a_subset(picture: Picture, one: int, other: int, pick: str) -> None:
    low, high = sorted((one, other))
    assert set(picture.choose(high, pick)) <= set(picture.choose(low, pick))


def test_strided_scores_and_other_number_types_are_taken() -> None:
    scores = np.array([[0.1, 5], [0.9, 5], [0.2, 5], [0.8, 5]])
    assert _native.choose(scores[:, 0], "fastv,drop=0.5").tolist() == [1, 3]
    kept = _native.choose(np.array([1, 9, 2, 8]), "fastv,drop=0.5", present=np.array([1, 0, 1, 1]))
    assert kept.tolist() == [2, 3]
    assert kept.dtype == np.int32


def test_without_grids_all_tokens_are_one_row() -> None:
    scores = _native.random_scores(30, 1)
    row = _native.choose(scores, "drop=0.5,pick=window4", grids=[(30, 1)])
    assert _native.choose(scores, "drop=0.5,pick=window4").tolist() == row.tolist()


# --- top-k


@given(PICTURES, PERCENT)
def test_top_k_keeps_the_highest_and_of_equal_ones_the_first(picture: Picture, percent: int) -> None:
    assert picture.choose(percent, "top-k") == sorted(picture.ranked[: picture.kept_count(percent)])


@given(PICTURES, PERCENT)
def test_top_k_depends_on_the_order_of_the_scores_only(picture: Picture, percent: int) -> None:
    order = np.unique(picture.scores, return_inverse=True)[1]
    for transformed in (order - 500, order**2):  # exact in float32
        same = Picture(transformed.astype(np.float32), picture.grids, picture.present)
        assert same.choose(percent, "top-k") == picture.choose(percent, "top-k")


@pytest.mark.parametrize("pick", ["top-k", "window9", "grid9", "mass0.5"])
def test_nan_ranks_last(pick: str) -> None:
    scores = np.array([np.nan, -np.inf, np.nan, 0.5], np.float32)
    assert _native.choose(scores, f"drop=0.5,pick={pick}").tolist() == [1, 3]


# --- window


@given(PICTURES, PERCENT, SIDES)
def test_window_orders_by_the_share_of_the_window_then_by_score(
    picture: Picture, percent: int, side: int
) -> None:
    window = [(slice, y // side, x // side) for slice, y, x in picture.places]
    size = Counter(window[i] for i in picture.ranked)
    seen: Counter[Any] = Counter()
    share = {}
    for i in picture.ranked:
        share[i] = Fraction(2 * seen[window[i]] + 1, 2 * size[window[i]])
        seen[window[i]] += 1
    expected = sorted(picture.ranked, key=lambda i: share[i])[: picture.kept_count(percent)]
    assert picture.choose(percent, f"window{side}") == sorted(expected)


@given(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=3), st.integers(1, 4), PERCENT, SEEDS)
def test_every_window_is_served_when_there_is_one_token_for_each(
    windows: list[tuple[int, int]], side: int, percent: int, seed: int
) -> None:
    picture = random_picture([(side * nx, side * ny) for nx, ny in windows], 100_000, seed)
    kept = picture.choose(percent, f"window{side}")
    window = [(slice, y // side, x // side) for slice, y, x in picture.places]
    served = Counter(window[i] for i in kept)
    n_windows = sum(nx * ny for nx, ny in windows)
    assert len(served) == min(len(kept), n_windows)
    assert max(served.values(), default=0) <= -(-len(kept) // n_windows)


@given(PICTURES, SIDES, PERCENT)
def test_every_window_is_served_its_share_of_those_present(picture: Picture, side: int, percent: int) -> None:
    """To less than two tokens, whatever the scores, at the smaller windows of the edge too."""
    kept = picture.choose(percent, f"window{side}")
    window = [(slice, y // side, x // side) for slice, y, x in picture.places]
    size, served = Counter(window[i] for i in picture.ranked), Counter(window[i] for i in kept)
    for name in size:
        assert abs(served[name] - Fraction(len(kept) * size[name], len(picture.ranked))) < 2


@given(SIDES, SIDES, SIDES, PERCENT, SEEDS)
def test_slices_of_the_same_scores_keep_the_same_windows_to_one(
    nx: int, ny: int, side: int, percent: int, seed: int
) -> None:
    one = random_picture([(nx, ny)], 100_000, seed)
    n = len(one.scores)
    both = Picture(np.tile(one.scores, 2), one.grids * 2, np.tile(one.present, 2))
    kept = both.choose(percent, f"window{side}")
    first, second = {i for i in kept if i < n}, {i - n for i in kept if i >= n}
    assert second <= first
    assert len(first) - len(second) == len(kept) % 2


@given(SIDES, SIDES, SIDES, st.sampled_from([0, 25, 50, 75, 100]), SEEDS)
def test_slices_of_the_same_scores_choose_as_one_alone(
    nx: int, ny: int, side: int, percent: int, seed: int
) -> None:
    """Where the counts come out even."""
    one = random_picture([(4 * nx, ny)], 100_000, seed)
    kept = one.choose(percent, f"window{side}")
    both = Picture(np.tile(one.scores, 2), one.grids * 2, np.tile(one.present, 2))
    assert both.choose(percent, f"window{side}") == kept + [i + len(one.scores) for i in kept]


def test_a_window_of_one_patch_is_top_k_and_one_of_the_whole_picture_too() -> None:
    picture = random_picture([(6, 4)], 100_000, seed=3)
    assert picture.choose(50, "window1") == picture.choose(50, "top-k") == picture.choose(50, "window6")


# --- uniform


@given(PICTURES, PERCENT)
def test_uniform_is_the_middles_of_equal_parts(picture: Picture, percent: int) -> None:
    assert picture.choose(percent, "uniform") == spread(sorted(picture.ranked), picture.kept_count(percent))


@given(st.integers(1, 600), PERCENT, SEEDS)
def test_uniform_is_evenly_spaced_whatever_the_scores(n: int, percent: int, seed: int) -> None:
    kept = random_picture([(n, 1)], 100_000, seed).choose(percent, "uniform")
    steps = np.diff(kept)
    assert steps.size == 0 or steps.max() - steps.min() <= 1
    assert not kept or abs(kept[0] - (n - 1 - kept[-1])) <= 1


# --- grid


@given(PICTURES, PERCENT, SIDES)
def test_grid_is_every_stride_th_patch_and_then_the_highest(
    picture: Picture, percent: int, stride: int
) -> None:
    count = picture.kept_count(percent)
    at_stride = {
        i
        for i, (_, y, x) in enumerate(picture.places)
        if picture.present[i] and x in range(stride // 2, 99, stride) and y in range(stride // 2, 99, stride)
    }
    kept = picture.choose(percent, f"grid{stride}")
    if len(at_stride) <= count:
        others = [i for i in picture.ranked if i not in at_stride]
        assert kept == sorted([*at_stride, *others[: count - len(at_stride)]])
    else:
        assert kept == spread(sorted(at_stride), count)


def test_grid_example() -> None:
    kept = _native.choose(np.arange(25, dtype=np.float32), "drop=0.8,pick=grid3", grids=[(5, 5)])
    assert kept.tolist() == [6, 9, 21, 23, 24]


# --- mass


@given(PICTURES, PERCENT, st.integers(1, 100))
def test_mass_is_the_smallest_set_that_holds_it_and_at_least_the_count(
    picture: Picture, percent: int, mass: int
) -> None:
    kept = picture.choose(percent, f"mass{mass / 100}")
    held = np.cumsum(picture.scores[picture.ranked], dtype=np.float64)
    total = held[-1] if held.size else 0.0
    needed = 0 if total == 0 else 1 + int((held < np.float64(np.float32(mass / 100)) * total).sum())
    assert kept == sorted(picture.ranked[: max(needed, picture.kept_count(percent))])


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        ("drop=1,pick=mass0.5", [1]),
        ("drop=1,pick=mass0.75", [1, 3]),
        ("drop=1,pick=mass0.751", [1, 2, 3]),
        ("drop=1,pick=mass1", [0, 1, 2, 3]),
        ("drop=0.25,pick=mass0.5", [1, 2, 3]),
    ],
)
def test_mass_examples(cut: str, kept: list[int]) -> None:
    assert _native.choose(np.array([1, 8, 3, 4], np.float32), cut).tolist() == kept


@given(st.integers(1, 300), PERCENT)
def test_mass_of_nothing_keeps_the_count(n: int, percent: int) -> None:
    kept = _native.choose(np.zeros(n, np.float32), f"drop={percent / 100},pick=mass0.9")
    assert kept.tolist() == list(range(kept_count(n, percent)))


# --- random scores


def splitmix64(state: int) -> int:
    mask = 2**64 - 1
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & mask
    state = (state ^ state >> 27) * 0x94D049BB133111EB & mask
    return state ^ state >> 31


@given(st.integers(0, 50), SEEDS)
def test_random_scores_are_splitmix64s(n: int, seed: int) -> None:
    """So the same on every machine."""
    drawn = [splitmix64((seed + i * 0x9E3779B97F4A7C15) % 2**64) for i in range(1, n + 1)]
    assert _native.random_scores(n, seed).tolist() == [(number >> 40) / 2**24 for number in drawn]


def test_the_first_number_of_seed_0_is_the_published_one() -> None:
    assert _native.random_scores(1, 0).tolist() == [(0xE220A8397B1DCDAF >> 40) / 2**24]


@pytest.mark.parametrize("seed", [0, 1, 2, 7, 2**32 - 1])
def test_random_scores_are_uniform(seed: int) -> None:
    scores = _native.random_scores(64_000, seed)
    assert scores.dtype == np.float32
    assert scores.min() >= 0
    assert scores.max() < 1
    counts = np.histogram(scores, bins=64, range=(0, 1))[0]
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000)


def test_random_scores_of_neighbouring_seeds_do_not_resemble() -> None:
    drawn = np.array([_native.random_scores(10_000, seed) for seed in range(20)])
    assert np.abs(np.corrcoef(drawn) - np.eye(20)).max() < 0.05
    assert np.abs(np.corrcoef(drawn[0, 1:], drawn[0, :-1])[0, 1]) < 0.05


# --- what is refused


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ("fastv,drop=-0.1", "drop"),
        ("fastv,drop=1.1", "drop"),
        ("pick=window0", "window"),
        ("pick=grid0", "stride"),
        ("pick=mass0", "mass"),
        ("pick=mass1.5", "mass"),
        ("pick=topk", "pick"),
        ("drop=0.5;k=4,drop=0.6", "one is taken"),
        ("", "is no schedule"),
    ],
)
def test_a_bad_cut_is_refused(cut: str, message: str) -> None:
    with pytest.raises(pyfastv.OptionError, match=message):
        _native.choose(np.zeros(4, np.float32), cut)


@pytest.mark.parametrize(
    "grids", [[], [(2, 1)], [(2, 2), (1, 1)], [(4, 0)], [(-2, -2)], [(2**31 - 1, 2**31 - 1)] * 4]
)
def test_grids_of_another_size_are_refused(grids: list[tuple[int, int]]) -> None:
    with pytest.raises(pyfastv.OptionError, match="grids"):
        _native.choose(np.zeros(4, np.float32), "drop=0.5,pick=window2", grids=grids)


@pytest.mark.parametrize("shape", [(3,), (5,), (0,), (4, 1), ()])
def test_present_of_another_length_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(pyfastv.OptionError, match="present must be a vector as long as scores: 4"):
        _native.choose(np.zeros(4, np.float32), "fastv,drop=0.5", present=np.ones(shape, bool))


@pytest.mark.parametrize("shape", [(), (2, 2)])
def test_scores_that_are_no_vector_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(pyfastv.OptionError, match="scores"):
        _native.choose(np.zeros(shape, np.float32), "fastv,drop=0.5")


# --- cover


def random_similarity(rng: np.random.Generator, n: int) -> NDArray[np.float32]:
    rows = rng.normal(size=(n, 5))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows @ rows.T).astype(np.float32)


def greedy_cover(weights: NDArray[np.float64], similarity: NDArray[np.float32], count: int) -> list[int]:
    """Facility location step by step, every gain computed anew."""
    likeness = (1 + similarity.astype(np.float64)) / 2
    covered, picked = np.zeros(len(weights)), []
    for _ in range(count):
        gains = np.maximum(likeness - covered, 0) @ weights
        gains[picked] = -1
        picked.append(int(gains.argmax()))
        covered = np.maximum(covered, likeness[picked[-1]])
    return picked


@given(st.integers(1, 60), PERCENT, SEEDS, st.sampled_from([0.3, 1.0]))
def test_cover_is_the_greedy_set_of_facility_location(
    n: int, percent: int, seed: int, share_present: float
) -> None:
    rng = np.random.default_rng(seed)
    scores, present = rng.random(n).astype(np.float32), rng.random(n) < share_present
    similarity = random_similarity(rng, present.sum())
    kept = _native.choose(scores, f"drop={percent / 100},pick=cover", present=present, similarity=similarity)
    tokens = np.flatnonzero(present)
    expected = greedy_cover(scores[tokens].astype(np.float64), similarity, len(kept))
    assert len(kept) == min(kept_count(n, percent), len(tokens))
    np.testing.assert_array_equal(kept, np.sort(tokens[expected]))


def test_cover_takes_one_of_each_kind_before_a_second() -> None:
    """Three kinds of patches, the last of them scores little; top-k would take the first kind only."""
    kind = np.repeat([0, 1, 2], [10, 3, 2])
    similarity = np.where(kind[:, None] == kind, 1, -1).astype(np.float32)
    scores = np.choose(kind, [0.9, 0.3, 0.1]).astype(np.float32)
    kept = _native.choose(scores, "drop=0.8,pick=cover", similarity=similarity)
    assert kind[kept].tolist() == [0, 1, 2]


def test_cover_leaves_out_what_nobody_looks_at() -> None:
    similarity = np.eye(4, dtype=np.float32) * 2 - 1
    kept = _native.choose(
        np.array([0, 0.2, 0, 0.1], np.float32), "drop=0.5,pick=cover", similarity=similarity
    )
    assert kept.tolist() == [1, 3]


def test_cover_without_scores_counts_every_patch_the_same() -> None:
    similarity = random_similarity(np.random.default_rng(0), 30)
    kept = _native.choose(np.zeros(30, np.float32), "drop=0.5,pick=cover", similarity=similarity)
    assert kept.tolist() == sorted(greedy_cover(np.ones(30), similarity, 15))


def test_cover_refuses_a_similarity_of_another_size() -> None:
    with pytest.raises(pyfastv.OptionError, match="4 rows and columns"):
        _native.choose(np.zeros(4, np.float32), "drop=0.5,pick=cover", similarity=np.eye(3, dtype=np.float32))
