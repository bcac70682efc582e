"""The reducers written again in NumPy, from the definitions in the papers; float64, no speed.

Each takes embeddings [n, d] and grids, [(nx, ny)] of the slices, and returns (embeddings [m, d], place [m],
member [n]).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Grids = Sequence[tuple[int, int]]
Reduced = tuple[Array, list[int], list[int]]


def count(keep: float, n: int) -> int:
    """A number of tokens, or a share of n, half to even."""
    return min(n, int(keep)) if keep >= 1 else min(n, max(1, round(round(n * keep, 6))))


def unit(x: Array) -> Array:
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.divide(x, length, out=np.zeros_like(x), where=length > 0)


def kept(x: Array, picked: Sequence[int]) -> Reduced:
    order = sorted(picked)
    member = [-1] * len(x)
    for output, index in enumerate(order):
        member[index] = output
    return x[order], order, member


def stride(x: Array, keep: float) -> Reduced:
    m = count(keep, len(x))
    return kept(x, [math.floor((i + 0.5) * len(x) / m) for i in range(m)])


def divprune(x: Array, keep: float) -> Reduced:
    m = count(keep, len(x))
    distance = 1.0 - unit(x) @ unit(x).T
    np.fill_diagonal(distance, np.inf)
    chosen: list[int] = []
    for _ in range(m):
        others = [i for i in range(len(x)) if i not in chosen]
        reach = distance.min(axis=1) if not chosen else distance[:, chosen].min(axis=1)
        chosen.append(max(others, key=lambda i: (reach[i], -i)))
    return kept(x, chosen)


def cdpruner(x: Array, keep: float, question: Array) -> Reduced:
    """The determinants themselves, not their Cholesky factors."""
    m = count(keep, len(x))
    relevance = unit(x[:, : len(question)]) @ unit(question)
    low, high = relevance.min(), relevance.max()
    r = (relevance - low) / (high - low) if high > low else np.ones(len(x))
    kernel = r[:, None] * (unit(x) @ unit(x).T) * r[None, :]
    chosen: list[int] = []
    for _ in range(m):

        def log_det(i: int) -> float:
            rows = [*chosen, i]
            sign, value = np.linalg.slogdet(kernel[np.ix_(rows, rows)])
            return float(value) if sign > 0 else -math.inf

        others = [i for i in range(len(x)) if i not in chosen]
        gains = {i: log_det(i) for i in others}
        chosen.append(max(others, key=lambda i: (gains[i], relevance[i], -i)))
    return kept(x, chosen)


def merge(x: Array, keep: float, scale: bool = False) -> Reduced:
    m = count(keep, len(x))
    tokens = [(x[i].astype(np.float64), 1, i, [i]) for i in range(len(x))]  # mean, size, place, members
    while len(tokens) > m:
        r = min(len(tokens) - m, len(tokens) // 2)
        even, odd = tokens[0::2], tokens[1::2]
        similarity = unit(np.stack([t[0] for t in even])) @ unit(np.stack([t[0] for t in odd])).T
        best, partner = similarity.max(axis=1), similarity.argmax(axis=1)
        gone = sorted(range(len(even)), key=lambda e: (-best[e], e))[:r]
        groups = [[token] for token in odd]
        for e in sorted(gone):
            groups[partner[e]].append(even[e])
        alive = [[token] for e, token in enumerate(even) if e not in gone] + groups
        tokens = []
        for group in alive:
            size = sum(t[1] for t in group)
            mean = sum(t[0] * t[1] for t in group) / size
            heaviest = min(group, key=lambda t: (-t[1], t[2]))
            tokens.append((mean, size, heaviest[2], [i for t in group for i in t[3]]))
        tokens.sort(key=lambda t: t[2])
    member = [-1] * len(x)
    for output, token in enumerate(tokens):
        for i in token[3]:
            member[i] = output
    values = np.stack([t[0] * (1 + math.log(t[1]) if scale else 1.0) for t in tokens])
    return values, [t[2] for t in tokens], member


def pool(x: Array, grids: Grids, window: int) -> Reduced:
    edges = [(_edges(nx, window), _edges(ny, window)) for nx, ny in grids]
    return _pool(x, grids, [((s, s + 1), *edges[s]) for s in range(len(grids))])


def pllava(x: Array, grids: Grids, frames: int, window: int) -> Reduced:
    t, groups = len(grids), min(frames, len(grids))
    times = [g * t // groups for g in range(groups + 1)]
    columns, rows = _edges(grids[0][0], window), _edges(grids[0][1], window)
    return _pool(x, grids, [((t0, t1), columns, rows) for t0, t1 in itertools.pairwise(times)])


def _edges(patches: int, window: int) -> list[int]:
    return [*range(0, patches, window), patches]


def _pool(x: Array, grids: Grids, boxes: Sequence[tuple[tuple[int, int], list[int], list[int]]]) -> Reduced:
    starts = np.concatenate([[0], np.cumsum([nx * ny for nx, ny in grids])])
    values, place, member = [], [], [-1] * len(x)
    for (t0, t1), columns, rows in boxes:
        for y0, y1 in itertools.pairwise(rows):
            for x0, x1 in itertools.pairwise(columns):
                inside = [
                    int(starts[t]) + y * grids[t][0] + c
                    for t in range(t0, t1)
                    for y in range(y0, y1)
                    for c in range(x0, x1)
                ]
                for i in inside:
                    member[i] = len(values)
                values.append(x[inside].mean(axis=0))
                # the patch nearest to the center, of two the earlier
                t, y, c = (math.ceil((a + b - 1) / 2 - 0.5) for a, b in ((t0, t1), (y0, y1), (x0, x1)))
                place.append(int(starts[t]) + y * grids[t][0] + c)
    return np.stack(values), place, member


def vidcom2_budgets(x: Array, grids: Grids, keep: float) -> list[int]:
    """By the method of largest remainders; what a frame cannot take goes to the others in the same way."""
    parts = np.split(x, np.cumsum([nx * ny for nx, ny in grids])[:-1])
    unique = np.array([np.mean(-unit(part) @ unit(x.mean(axis=0))) for part in parts])
    weight = np.exp((unique - unique.max()) / 0.01)
    weight /= weight.sum()
    want = np.array([len(part) for part in parts]) * (1 + weight - 1 / len(parts))
    budgets, left = [0] * len(parts), count(keep, len(x))
    while left:
        free = [f for f, part in enumerate(parts) if budgets[f] < len(part)]
        share = {f: left * want[f] / sum(want[g] for g in free) for f in free}
        given = {f: min(math.floor(share[f] + 1e-9), len(parts[f]) - budgets[f]) for f in free}
        for f in free:
            budgets[f] += given[f]
        left -= sum(given.values())
        if left > len(free) and sum(given.values()):
            continue
        for f in sorted(free, key=lambda f: (given[f] - share[f], f)):
            if left and budgets[f] < len(parts[f]):
                budgets[f] += 1
                left -= 1
    return budgets


def vidcom2(x: Array, grids: Grids, keep: float) -> Reduced:
    starts = np.concatenate([[0], np.cumsum([nx * ny for nx, ny in grids])])
    video = unit(x.mean(axis=0))
    chosen: list[int] = []
    for f, budget in enumerate(vidcom2_budgets(x, grids, keep)):
        part = unit(x[starts[f] : starts[f + 1]])
        frame = unit(x[starts[f] : starts[f + 1]].mean(axis=0))
        score = -(part @ video) - part @ frame
        order = sorted(range(len(part)), key=lambda i: (-score[i], i))
        chosen += [int(starts[f]) + i for i in order[:budget]]
    return kept(x, chosen)


def evs(x: Array, grids: Grids, drop: float) -> Reduced:
    size = grids[0][0] * grids[0][1]
    change = np.full(len(x), np.inf)
    change[size:] = 1 - np.sum(unit(x[size:]) * unit(x[:-size]), axis=1)
    m = len(x) if drop == 0 else max(size, count(1 - drop, len(x)))
    return kept(x, sorted(range(len(x)), key=lambda i: (-change[i], i))[:m])
