"""The rules for keeping visual tokens: schedules, scores and picks. Needs numpy only.

    schedule = parse("k=2,drop=0.5,score=question-max,pick=window4;k=6,drop=0.75,score=last", n_layer=12)
    scores = visual_scores(received, "question-max")
    kept = pick(scores, schedule.cuts[0], grid=(24, 24))

A grid is (height, width) of the patches, in raster order. Of two equal scores the lower index comes first.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

SCORES = ("last", "question-mean", "question-max", "all", "last-no-rope", "none")
PICKS = ("top-k", "window", "uniform", "grid", "mass", "cover")
# of a cut that names no part of its rule
RECOMMENDED = {"score": "question-max", "pick": "cover", "weigh": True}
# A case whose gap is smaller may turn out differently after rounding.
MIN_GAP = 3e-4


@dataclass(frozen=True)
class Cut:
    layer: int = 2  # the first layer that does not see all
    drop: float = 0.5  # share of all of the picture's tokens
    score: str = "last"  # of SCORES
    pick: str = "top-k"  # of PICKS
    number: float = 0  # "window": its side; "grid": the stride; "mass": the share
    weigh: bool = False  # a kept token counts in attention as often as the tokens it stands for
    merge: bool = False  # dropped rows are averaged into the nearest kept row

    @property
    def by_attention(self) -> bool:
        return self.score != "none"

    @property
    def choice(self) -> str:
        """The fields that the choice needs, given the scores."""
        return f"drop={self.drop},pick={self.pick}{f'{self.number:g}' if self.number else ''}"


@dataclass(frozen=True)
class Schedule:
    cuts: tuple[Cut, ...]
    recall: float = 0.025  # share of the picture's tokens that a later question may bring back at a cut


def parse_layer(text: str, n_layer: int) -> int:
    if text.endswith("%"):
        return math.floor(n_layer * float(text[:-1]) / 100 + 0.5)
    return int(text)


def parse_pick(text: str) -> tuple[str, float]:
    name, number = re.fullmatch(r"([a-z-]+)([0-9.]*)", text).groups()
    if name not in PICKS or (name in ("top-k", "uniform", "cover")) != (number == ""):
        raise ValueError(f"pick = {text!r}, need one of {PICKS}, with their numbers")
    return name, float(number or 0)


def parse(text: str, n_layer: int) -> Schedule:
    """From the language of pyfastv_parse(), less score=random and the names of presets."""
    cuts, recall = [], Schedule.recall
    for part in text.split(";"):
        fields = {}
        for field in part.split(","):
            name, _, value = field.strip().partition("=")
            if name == "k":
                fields["layer"] = parse_layer(value, n_layer)
            elif name == "drop":
                fields["drop"] = float(value)
            elif name == "score" and value in SCORES:
                fields["score"] = value
            elif name == "pick":
                fields["pick"], fields["number"] = parse_pick(value)
            elif name in ("weigh", "merge") and not value:
                fields[name] = True
            elif name == "recall":
                recall = float(value)
            elif name != "cells":
                raise ValueError(f"{field!r} in {text!r}")
        if not {"score", "pick", "weigh", "merge"} & set(fields):
            fields |= RECOMMENDED
        cuts.append(Cut(**fields))
    layers, drops = [cut.layer for cut in cuts], [cut.drop for cut in cuts]
    if layers != sorted(set(layers)) or not 1 <= layers[0] <= layers[-1] < n_layer or drops != sorted(drops):
        raise ValueError(f"{text!r}: layers and drops must ascend, layers from 1 to {n_layer - 1}")
    return Schedule(tuple(cuts), recall)


def asks(score: str, positions: np.ndarray, visual: slice, start: int) -> np.ndarray:
    """Which rows rank the visual tokens, (n_rows) bool. The rows of this turn begin at position `start`."""
    if score in ("last", "last-no-rope"):
        return positions == positions.max()
    if score == "all":
        return positions >= max(visual.start, start)
    if score in ("question-mean", "question-max"):
        return positions >= max(visual.stop, start)
    raise ValueError(f"score = {score!r}, no rows rank")


def visual_scores(received: np.ndarray, score: str) -> np.ndarray:
    """(n_visual), from what the tokens receive from the rows that ask, (n_rows, n_visual), mean over heads."""
    return received.max(axis=0) if score == "question-max" else received.mean(axis=0)


def count_kept(n: int, drop: float) -> int:
    if not 0 <= drop <= 1:
        raise ValueError(f"drop = {drop}, need 0 <= drop <= 1")
    return 0 if drop == 1 else max(1, round(n * (1 - drop)))  # half to even


def ranked(scores: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The indices (ascending ones), best score first."""
    return indices[np.argsort(-scores[indices], kind="stable")]


def windows(grid: tuple[int, int], size: int) -> list[np.ndarray]:
    """Indices of the tokens of each window of a grid; cut off at the edges."""
    height, width = grid
    indices = np.arange(height * width).reshape(grid)
    return [
        indices[top : top + size, left : left + size].ravel()
        for top in range(0, height, size)
        for left in range(0, width, size)
    ]


def window_order(
    scores: np.ndarray, grid: tuple[int, int], size: int, present: np.ndarray
) -> tuple[list[int], dict[int, Fraction]]:
    """All tokens present, the first to keep first, and the share of its window that is better than each of them.

    The share of the token ranked r of s, r = 0 the best, is (r + 1/2) / s. Of equal shares the higher score
    comes first.
    """
    share = {}
    for window in windows(grid, size):
        window = window[present[window]]
        for rank, index in enumerate(ranked(scores, window).tolist()):
            share[index] = Fraction(2 * rank + 1, 2 * len(window))
    return sorted(share, key=lambda index: (share[index], -scores[index], index)), share


def uniform(n: int, n_keep: int) -> np.ndarray:
    """The middle of each of n_keep equal parts, rounded down."""
    return (2 * np.arange(n_keep) + 1) * n // (2 * n_keep)


def grid_points(grid: tuple[int, int], stride: int) -> np.ndarray:
    """Indices of every stride-th row and column, from stride // 2 on."""
    indices = np.arange(grid[0] * grid[1]).reshape(grid)
    return indices[stride // 2 :: stride, stride // 2 :: stride].ravel()


def shares_held(scores: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """What none, the best, the two best, ... of the tokens hold of the sum over them; all of nothing is 1."""
    held = np.append(0.0, np.cumsum(scores[ranked(scores, tokens)], dtype=np.float64))
    return held / held[-1] if held[-1] > 0 else np.ones(len(held))


def similarities(rows: np.ndarray) -> np.ndarray:
    """Cosines (m, m) between the rows (m, n_embd) after their mean was subtracted."""
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    return unit @ unit.T


def cover(weights: np.ndarray, similarity: np.ndarray, n_keep: int) -> tuple[list[int], list[np.ndarray]]:
    """Greedy facility location: indices in the order picked, and every token's gain at each step.

    The set's worth is the weighted sum, over all tokens, of (1 + cosine) / 2 with the most similar one in the set.
    """
    likeness = (1 + similarity) / 2
    if not weights.any():
        weights = np.ones_like(weights)
    covered, picked, gains = np.zeros(len(weights)), [], []
    for _ in range(n_keep):
        gain = np.maximum(likeness - covered, 0) @ weights
        gain[picked] = -1
        gains.append(gain)
        picked.append(int(gain.argmax()))
        covered = np.maximum(covered, likeness[picked[-1]])
    return picked, gains


def pick(
    scores: np.ndarray,
    cut: Cut,
    *,
    grid: tuple[int, int],
    present: np.ndarray | None = None,
    similarity: np.ndarray | None = None,
) -> np.ndarray:
    """Indices of the tokens to keep, ascending.

    present: (n) bool, those to choose from; None is all. similarity: (m, m) of those, for "cover".
    """
    n = len(scores)
    if grid[0] * grid[1] != n:
        raise ValueError(f"grid {grid} for {n} tokens")
    if present is None:
        present = np.ones(n, bool)
    tokens = np.flatnonzero(present)
    n_keep = min(count_kept(n, cut.drop), len(tokens))
    if cut.pick == "top-k":
        kept = ranked(scores, tokens)[:n_keep]
    elif cut.pick == "window":
        order, _ = window_order(scores, grid, int(cut.number), present)
        kept = np.array(order[:n_keep], np.intp)
    elif cut.pick == "uniform":
        kept = tokens[uniform(len(tokens), n_keep)]
    elif cut.pick == "grid":
        points = grid_points(grid, int(cut.number))
        points = points[present[points]]
        points = points[uniform(len(points), min(len(points), n_keep))]
        others = np.setdiff1d(tokens, points)
        kept = np.append(points, ranked(scores, others)[: n_keep - len(points)])
    elif cut.pick == "cover":
        assert similarity is not None
        kept = tokens[cover(scores[tokens].astype(np.float64), similarity, n_keep)[0]]
    else:
        n_mass = int(np.argmax(shares_held(scores, tokens) >= cut.number))
        kept = ranked(scores, tokens)[: max(n_keep, n_mass)]
    return np.sort(kept)


def recalled(chosen: np.ndarray, there: np.ndarray, scores: np.ndarray, recall: float) -> np.ndarray:
    """Of those chosen, (n) indices, those that a stage lacks, at most round-half-even(recall * n); ascending.

    there: (n_visual) bool, what the stage has.
    """
    return np.sort(ranked(scores, chosen[~there[chosen]])[: round(recall * len(scores))])


def owners(similarity: np.ndarray, present: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The kept token that each of the tokens present belongs to, (n): the most similar one, kept ones to themselves.

    similarity: (m, m) of those present. -1 for tokens that are not present, and where none is kept.
    """
    owner = np.full(len(present), -1)
    if len(kept) > 0:
        columns = np.searchsorted(np.flatnonzero(present), kept)
        owner[present] = kept[similarity[:, columns].argmax(axis=1)]
        owner[kept] = kept
    return owner


def owner_lead(similarity: np.ndarray, present: np.ndarray, kept: np.ndarray) -> float:
    """The smallest lead of a dropped token's owner, in cosine, over the kept token that is second nearest."""
    columns = np.searchsorted(np.flatnonzero(present), kept)
    cosines = np.sort(np.delete(similarity, columns, axis=0)[:, columns], axis=1)
    return float((cosines[:, -1] - cosines[:, -2]).min(initial=np.inf)) if len(kept) > 1 else float("inf")


def sizes_behind(owner: np.ndarray, before: np.ndarray) -> np.ndarray:
    """For how many tokens each one stands behind a cut, (n): the sizes before it of those that it owns; 0 for others."""
    owned = owner >= 0
    return np.bincount(owner[owned], before[owned], len(owner)).astype(int)


def sizes_taken_back(
    sizes: np.ndarray, owner: np.ndarray, before: np.ndarray, back: np.ndarray
) -> np.ndarray:
    """The sizes behind a cut once the tokens `back` are there: each has its size before the cut, off its owner's.

    A token that had not reached the cut when the owners were found was never counted in anyone's size.
    """
    sizes = sizes.copy()
    sizes[back] = before[back]
    counted = back[owner[back] >= 0]
    np.subtract.at(sizes, owner[counted], before[counted])
    return sizes


def cut_gap(scores: np.ndarray, kept: np.ndarray, dropped: np.ndarray) -> float:
    """(lowest kept score - highest dropped) / lowest kept; inf when there was nothing to decide."""
    if len(kept) == 0 or len(dropped) == 0:
        return float("inf")
    lowest = scores[kept].min()
    return float((lowest - scores[dropped].max()) / lowest)


def gap(
    scores: np.ndarray,
    cut: Cut,
    *,
    grid: tuple[int, int],
    present: np.ndarray | None = None,
    similarity: np.ndarray | None = None,
) -> float:
    """The smallest relative difference of two scores that decides who is kept.

    For windows: at the cut of each window, and among the tokens of one share that are kept only in part. For
    "mass" also: by how much the scores of all those kept have to change until one more or one less is enough.
    "cover": of a gain and the best gain of a token that is never kept, at any step.
    """
    n = len(scores)
    if present is None:
        present = np.ones(n, bool)
    tokens = np.flatnonzero(present)
    if cut.pick == "cover":
        weights = scores[tokens].astype(np.float64)
        picked, gains = cover(weights, similarity, min(count_kept(n, cut.drop), len(tokens)))
        never = np.setdiff1d(np.arange(len(tokens)), picked)
        leads = [1 - gain[never].max() / gain[i] for i, gain in zip(picked, gains, strict=True) if len(never)]
        return float(min(leads, default=np.inf))
    kept = pick(scores, cut, grid=grid, present=present)
    is_kept = np.isin(np.arange(n), kept)
    groups, smallest = [tokens], float("inf")
    if cut.pick == "uniform" or len(kept) == 0:
        groups = []
    elif cut.pick == "window":
        order, share = window_order(scores, grid, int(cut.number), present)
        last = share[order[len(kept) - 1]]
        groups = [window[present[window]] for window in windows(grid, int(cut.number))]
        groups.append(np.array([index for index in order if share[index] == last]))
    elif cut.pick == "grid":
        groups = [np.setdiff1d(tokens, grid_points(grid, int(cut.number)))]
    elif cut.pick == "mass" and cut.number < 1:
        off = np.abs(shares_held(scores, tokens) - cut.number)
        decisive = off[count_kept(n, cut.drop) :]
        smallest = float(decisive.min(initial=np.inf)) / (cut.number * (1 - cut.number))
    return min(
        [smallest, *(cut_gap(scores, group[is_kept[group]], group[~is_kept[group]]) for group in groups)]
    )
