"""Choosing among more tokens than are compared with each other at once: within parts (native/choose/parts.h)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import pyfastv
from pyfastv import _native

import reduce_reference as reference

MOST = 3072  # compared with each other
N = 3101
PARTS = [(0, 1033), (1033, 2067), (2067, N)]  # of at most 1,536; the second begins with an odd token

Array = NDArray[np.float64]


def rows_of(seed: int, n: int = N, width: int = 12) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def cosines_within(x: Array, elsewhere: float) -> Array:
    """[n, n]; of tokens of different parts ``elsewhere``."""
    cosines = np.full((len(x), len(x)), elsewhere)
    for begin, end in PARTS:
        unit = reference.unit(x[begin:end])
        cosines[begin:end, begin:end] = unit @ unit.T
    return cosines


def cover(x: Array, weights: Array, count: int, parts: list[tuple[int, int]] = PARTS) -> list[int]:
    """What one part covers of another is 0: after a pick only the gains of its own part are others."""
    unit = reference.unit(x - x.mean(axis=0))
    likeness = [(1 + unit[begin:end] @ unit[begin:end].T) / 2 for begin, end in parts]
    covered, gains, picked = np.zeros(len(x)), np.zeros(len(x)), []

    def gain(part: int) -> None:
        begin, end = parts[part]
        gains[begin:end] = np.maximum(likeness[part] - covered[begin:end], 0) @ weights[begin:end]

    for part in range(len(parts)):
        gain(part)
    for _ in range(count):
        gains[picked] = -1
        picked.append(int(gains.argmax()))
        part = next(i for i, (begin, end) in enumerate(parts) if begin <= picked[-1] < end)
        begin, end = parts[part]
        covered[begin:end] = np.maximum(covered[begin:end], likeness[part][picked[-1] - begin])
        gain(part)
    return sorted(picked)


def divprune(x: Array, count: int) -> list[int]:
    cosines = cosines_within(x, -1.0)
    np.fill_diagonal(cosines, -1.0)
    own_nearest = cosines.max(axis=1)
    np.fill_diagonal(cosines, 1.0)
    picked: list[int] = []
    nearest = np.full(len(x), -1.0)
    for _ in range(count):
        reach = 1 - nearest
        for begin, end in PARTS:
            if not any(begin <= i < end for i in picked):
                reach[begin:end] = 2 + 1 - own_nearest[begin:end]
        reach[picked] = -1
        picked.append(int(reach.argmax()))
        nearest = np.maximum(nearest, cosines[picked[-1]])
    return sorted(picked)


def cdpruner(x: Array, question: Array, count: int) -> list[int]:
    relevance = reference.unit(x[:, : len(question)]) @ reference.unit(question)
    r = (relevance - relevance.min()) / (relevance.max() - relevance.min())
    kernel = r[:, None] * cosines_within(x, 0.0) * r[None, :]
    gain, factor, picked = np.diag(kernel).copy(), np.zeros((0, len(x))), []
    for _ in range(count):
        best = int(gain.argmax())
        row = (kernel[best] - factor[:, best] @ factor) / np.sqrt(gain[best])
        factor = np.vstack([factor, row])
        gain -= row**2
        picked.append(best)
        gain[picked] = -1
    return sorted(picked)


def merged(x: Array, count: int) -> list[int]:
    """The output of every input, one round of matching."""
    best, partner = np.zeros(len(x)), np.zeros(len(x), int)
    for begin, end in PARTS:
        even = [i for i in range(begin, end) if i % 2 == 0]
        odd = [i for i in range(begin, end) if i % 2 == 1]
        likeness = reference.unit(x[even]) @ reference.unit(x[odd]).T
        best[even], partner[even] = likeness.max(axis=1), np.array(odd)[likeness.argmax(axis=1)]
    gone = sorted(range(0, len(x), 2), key=lambda i: (-best[i], i))[: len(x) - count]
    into = np.arange(len(x))
    into[gone] = partner[gone]
    place = np.array([min(np.flatnonzero(into == into[i])) for i in range(len(x))])
    return np.unique(place, return_inverse=True)[1].tolist()


@pytest.mark.parametrize("seed", [0, 1])
def test_cover_is_greedy_over_parts_that_do_not_represent_each_other(seed: int) -> None:
    x = rows_of(seed)
    scores = np.random.default_rng(seed).random(len(x)).astype(np.float32)
    scores[: len(x) // 3] *= 0.1  # what is looked at more gets more, whatever part it is in
    kept = _native.choose(scores, "drop=0.98,pick=cover", hidden=x).tolist()
    assert kept == cover(x.astype(np.float64), scores.astype(np.float64), len(kept))


def test_cover_compares_the_largest_picture_of_one_part_as_a_whole() -> None:
    x, scores = rows_of(3, MOST, 8), np.random.default_rng(3).random(MOST).astype(np.float32)
    kept = _native.choose(scores, "drop=0.995,pick=cover", hidden=x).tolist()
    assert kept == cover(x.astype(np.float64), scores.astype(np.float64), len(kept), [(0, MOST)])


@pytest.mark.parametrize("keep", [1, 2, 3, 40])
def test_divprune_is_farthest_first_over_parts(keep: int) -> None:
    x = rows_of(4)
    place = _native.reduce(x, f"divprune,keep={keep}")["place"].tolist()
    assert place == divprune(x.astype(np.float64), keep)


@pytest.mark.parametrize("keep", [1, 15])
def test_cdpruner_is_greedy_over_a_kernel_of_blocks(keep: int) -> None:
    x = rows_of(5, width=24)
    question = x[7, :8] + x[2000, :8]
    place = _native.reduce(x, f"cdpruner,keep={keep}", question=question)["place"].tolist()
    assert place == cdpruner(x.astype(np.float64), question.astype(np.float64), keep)


def test_cdpruner_fills_up_with_the_most_relevant_when_no_part_has_more_rank() -> None:
    x = rows_of(6, width=4)
    made = _native.reduce(x, "cdpruner,keep=100", question=x[0])["place"].tolist()
    relevance = reference.unit(x.astype(np.float64)) @ reference.unit(x[0].astype(np.float64))
    by_relevance = sorted(range(len(x)), key=lambda i: -relevance[i])
    assert len(made) == 100
    assert len(set(made) - set(by_relevance[:100])) <= 12  # a rank of 4 in each of three parts


def test_merge_matches_within_parts() -> None:
    x = rows_of(7)
    made = _native.reduce(x, f"merge,keep={len(x) - 300}")
    assert made["member"].tolist() == merged(x.astype(np.float64), len(x) - 300)


def runs(threads: int) -> dict[str, Callable[[], Any]]:
    x = rows_of(8, 6500, 8)
    scores = np.random.default_rng(8).random(len(x)).astype(np.float32)
    specs = ("divprune,keep=300", "cdpruner,keep=300", "merge,keep=6000")
    made: dict[str, Callable[[], Any]] = {
        spec: lambda spec=spec: _native.reduce(x, spec, question=x[0], n_threads=threads)["member"]
        for spec in specs
    }
    made["cover"] = lambda: _native.choose(scores, "drop=0.9,pick=cover", hidden=x, n_threads=threads)
    return made


@pytest.mark.parametrize("name", runs(1))
def test_threads_do_not_change_the_choice(name: str) -> None:
    np.testing.assert_array_equal(runs(1)[name](), runs(3)[name]())


@pytest.mark.parametrize("pick", ["cover", "top-k"])
def test_hidden_rows_of_absent_tokens_do_not_matter(pick: str) -> None:
    x, rng = rows_of(9, 50), np.random.default_rng(9)
    scores, present = rng.random(50).astype(np.float32), rng.random(50) < 0.6
    kept = _native.choose(scores, f"drop=0.8,pick={pick}", hidden=x, present=present).tolist()
    x[~present] = 1e9
    assert _native.choose(scores, f"drop=0.8,pick={pick}", hidden=x, present=present).tolist() == kept


@pytest.mark.parametrize("shape", [(3, 5), (5, 0), (5,)])
def test_hidden_rows_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(pyfastv.OptionError, match="hidden must be a matrix with 4 rows"):
        _native.choose(np.zeros(4, np.float32), "pick=cover", hidden=np.zeros(shape, np.float32))


def test_hidden_rows_and_their_cosines_are_not_both_taken() -> None:
    with pytest.raises(pyfastv.OptionError, match="cannot both be given"):
        _native.choose(
            np.zeros(2, np.float32),
            "pick=cover",
            hidden=np.zeros((2, 3), np.float32),
            similarity=np.eye(2, dtype=np.float32),
        )


PEAK = """
import sys
import numpy as np
from pathlib import Path
from pyfastv import _native

def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024

x = np.random.default_rng(0).normal(size=(int(sys.argv[2]), 32)).astype(np.float32)
_native.reduce(x[:64], sys.argv[1], question=x[0])
before = peak()
_native.reduce(x, sys.argv[1], question=x[0])
print(peak() - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="this machine is not Linux, and does not tell peak memory"
)
@pytest.mark.parametrize("spec", ["divprune,keep=10", "cdpruner,keep=10", "merge,keep=0.9"])
def test_memory_is_that_of_parts_not_of_the_square(spec: str, tmp_path: Path) -> None:
    n = 3 * MOST
    made = subprocess.run(
        [sys.executable, "-c", PEAK, spec, str(n)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert int(made.stdout) < n * MOST * 4  # 113 MB; n * n are 340
