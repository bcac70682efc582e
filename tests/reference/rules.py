"""The other rules for keeping visual tokens, and the golden file of them. Needs numpy only.

    scores = visual_scores(matrix, slice(5, 581), "question-max")
    kept = pick(scores, 0.5, "window", grid=(24, 24), window=4)
    for case in read_rules(Path("golden_rules.npz")): ...

The attention matrix is the softmax of layer k - 1 after the mean over heads, (n_prompt, n_prompt): a row for
every token that looks, a column for every token looked at. Of two equal scores the lower index comes first.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

SCORES = ("last", "question-mean", "question-max")
PICKS = ("top-k", "window", "uniform")
# A case whose gap is smaller may turn out differently after rounding.
MIN_GAP = 3e-4


def visual_scores(matrix: np.ndarray, visual: slice, score: str) -> np.ndarray:
    """What the visual tokens receive, (n_visual): from the last row, or from all the rows after the picture."""
    if score == "last":
        return matrix[-1, visual]
    question = matrix[visual.stop :, visual]
    if score == "question-mean":
        return question.mean(axis=0)
    if score == "question-max":
        return question.max(axis=0)
    raise ValueError(f"score = {score!r}, need one of {SCORES}")


def count_kept(n: int, drop: float) -> int:
    if not 0 <= drop < 1:
        raise ValueError(f"drop = {drop}, need 0 <= drop < 1")
    return max(1, round(n * (1 - drop)))  # half to even


def ranked(scores: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The indices (ascending ones), best score first."""
    return indices[np.argsort(-scores[indices], kind="stable")]


def windows(grid: tuple[int, int], size: int) -> list[np.ndarray]:
    """Indices of the tokens of each window of a (height, width) grid in raster order; cut off at the edges."""
    height, width = grid
    indices = np.arange(height * width).reshape(grid)
    return [
        indices[top : top + size, left : left + size].ravel()
        for top in range(0, height, size)
        for left in range(0, width, size)
    ]


def window_order(
    scores: np.ndarray, grid: tuple[int, int], size: int
) -> tuple[list[int], dict[int, Fraction]]:
    """All tokens, the first to keep first, and the share of its window that is better than each of them.

    The share of the token ranked r of s, r = 0 the best, is (r + 1/2) / s. Of equal shares the higher score
    comes first.
    """
    share = {}
    for window in windows(grid, size):
        for rank, index in enumerate(ranked(scores, window).tolist()):
            share[index] = Fraction(2 * rank + 1, 2 * len(window))
    return sorted(share, key=lambda index: (share[index], -scores[index], index)), share


def uniform(n: int, n_keep: int) -> np.ndarray:
    """The middle of each of n_keep equal parts, rounded down."""
    return (2 * np.arange(n_keep) + 1) * n // (2 * n_keep)


def pick(
    scores: np.ndarray, drop: float, how: str, *, grid: tuple[int, int], window: int | None = None
) -> np.ndarray:
    """Indices of the tokens to keep, ascending. window: the side of a window, for "window" only."""
    n, n_keep = len(scores), count_kept(len(scores), drop)
    if grid[0] * grid[1] != n:
        raise ValueError(f"grid {grid} for {n} tokens")
    if how == "top-k":
        return np.sort(ranked(scores, np.arange(n))[:n_keep])
    if how == "window":
        assert window is not None
        order, _ = window_order(scores, grid, window)
        return np.sort(order[:n_keep])
    if how == "uniform":
        return uniform(n, n_keep)
    raise ValueError(f"pick = {how!r}, need one of {PICKS}")


def cut_gap(scores: np.ndarray, kept: np.ndarray, dropped: np.ndarray) -> float:
    """(lowest kept score - highest dropped) / lowest kept; inf when there was nothing to decide."""
    if len(kept) == 0 or len(dropped) == 0:
        return float("inf")
    lowest = scores[kept].min()
    return float((lowest - scores[dropped].max()) / lowest)


def gap(
    scores: np.ndarray, drop: float, how: str, *, grid: tuple[int, int], window: int | None = None
) -> float:
    """The smallest relative difference of two scores that decides who is kept.

    For windows: at the cut of each window, and among the tokens of one share that are kept only in part.
    """
    n = len(scores)
    if how == "uniform":
        return float("inf")
    kept = pick(scores, drop, how, grid=grid, window=window)
    is_kept = np.isin(np.arange(n), kept)
    groups = [np.arange(n)]
    if how == "window":
        assert window is not None
        order, share = window_order(scores, grid, window)
        last = share[order[len(kept) - 1]]
        groups = [*windows(grid, window), np.array([index for index in order if share[index] == last])]
    return min(cut_gap(scores, group[is_kept[group]], group[~is_kept[group]]) for group in groups)


@dataclass(frozen=True)
class RuleCase:
    """One rule in one setting on one question."""

    question: str  # id
    image: str  # images/NAME.png, in the bench folder and in this one
    prompt: str
    k: int
    drop: float
    score: str  # of SCORES; of no effect when pick is "uniform"
    pick: str  # of PICKS
    window: int | None  # the side of a window; None unless pick is "window"
    gap: float  # inf for "uniform"
    fragile: bool  # gap < MIN_GAP: compare the sets with a tolerance
    kept: np.ndarray  # (n_keep) int16, ascending, 0 is the picture's first patch
    scores: np.ndarray  # (n_visual) float32
    logits_first: np.ndarray  # (n_vocab) float32, of the last prompt token

    @property
    def rule(self) -> str:
        return f"{self.score}-{self.pick}{self.window or ''}"

    @property
    def name(self) -> str:
        return f"k{self.k}-drop{self.drop}-{self.rule}"


ARRAYS = ("kept", "scores", "logits_first")


def array_name(case: RuleCase, name: str) -> str:
    """Scores are stored once for all the cases that share them."""
    of = f"k{case.k}-{case.score}" if name == "scores" else case.name
    return f"{case.question}/{of}/{name}"


def write_rules(path: Path, weights_sha256: dict[str, str], cases: list[RuleCase]) -> None:
    arrays: dict[str, np.ndarray] = {}
    about: list[dict[str, Any]] = []
    for case in cases:
        about.append({k: v for k, v in vars(case).items() if k not in ARRAYS})
        arrays |= {array_name(case, name): getattr(case, name) for name in ARRAYS}
    meta = {"weights_sha256": weights_sha256, "cases": about}
    np.savez_compressed(path, meta=np.array(json.dumps(meta)), **arrays)


def read_rules(path: Path) -> list[RuleCase]:
    with np.load(path) as file:
        cases = []
        for values in json.loads(str(file["meta"]))["cases"]:
            empty = RuleCase(**values, **dict.fromkeys(ARRAYS, np.empty(0)))
            cases.append(RuleCase(**values, **{name: file[array_name(empty, name)] for name in ARRAYS}))
    return cases
