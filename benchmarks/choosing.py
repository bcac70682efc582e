"""What choosing costs beside the prefill that it saves: every pick and every reducer.

    python benchmarks/choosing.py
    python benchmarks/choosing.py --tokens 576 2880 --rounds 5 --token-ms 25

Prints Markdown: milliseconds from scores or embeddings to the result (the median of the rounds), their share of the
prefill saved in percent, and the MB that it took on top of its input at its highest (on Linux). Half of the tokens are
dropped. --token-ms: prefill of one token by the language model; LLaVA-1.5-7B, Q4_0, on 2 threads of an AMD EPYC takes 11
with our kernels (docs/kernels.md) and 25 with llama.cpp's. Scores are random; rows of neighbors are alike, as in a
picture.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pyfastv import EVS, CDPruner, DivPrune, Merge, PLLaVA, Pool, Stride, VidCom2, _native

SIDE = 24  # of a slice or a frame, in tokens
PICKS = ("top-k", "window4", "uniform", "grid3", "mass0.95", "cover")


def resident_peak() -> int:
    """Bytes, since forget_peak(); 0: this system does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def forget_peak() -> int:
    """Bytes that are resident now, without what was freed."""
    try:
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, TypeError):
        return 0
    return resident_peak()


def measured(run: Callable[[], object], rounds: int) -> tuple[float, float]:
    """(ms, MB more than before)"""
    times, peaks = [], []
    for _ in range(rounds):
        before = forget_peak()
        begin = time.perf_counter()
        run()
        times.append((time.perf_counter() - begin) * 1000)
        peaks.append((resident_peak() - before) / 1e6)
    return statistics.median(times), max(peaks)


def rows_of_a_picture(rng: np.random.Generator, n: int, width: int) -> np.ndarray:
    fine = rng.normal(size=(n, width)).astype(np.float32)
    fine += np.repeat(2 * rng.normal(size=(n // 12, width)).astype(np.float32), 12, axis=0)
    return fine


def choices(n: int, width: int, threads: int) -> dict[str, Callable[[], object]]:
    """What is measured, by name."""
    rng = np.random.default_rng(0)
    grids = [(SIDE, SIDE)] * (n // SIDE**2)
    rows, scores = rows_of_a_picture(rng, n, width), rng.random(n).astype(np.float32)
    question = rows[:5].mean(axis=0)
    keep = n // 2
    reducers = (
        Pool(keep=keep),
        Stride(keep),
        Merge(keep),
        DivPrune(keep),
        CDPruner(keep),
        VidCom2(keep),
        EVS(0.5),
        PLLaVA(max(1, len(grids) // 2), 2),
    )

    def pick(name: str) -> Callable[[], object]:
        # hidden rows are looked at by `cover` alone
        hidden = rows if name == "cover" else None
        return lambda: _native.choose(
            scores, f"drop=0.5,pick={name}", grids=grids, hidden=hidden, n_threads=threads
        )

    def reduce(spec: str) -> Callable[[], object]:
        return lambda: _native.reduce(rows, spec, grids=grids, question=question, n_threads=threads)

    picks = {f"pick={name}": pick(name) for name in PICKS}
    return picks | {spec.partition(",")[0]: reduce(spec) for spec in (r.spec() for r in reducers)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=[576, 2880, 10368, 20160], help="multiples of 576"
    )
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--token-ms", type=float, default=11.0)
    args = parser.parse_args()

    print(
        f"Width {args.width}, {args.threads} threads, {args.token_ms:g} ms a token; ms, % of the prefill saved, MB:\n"
    )
    print("| |" + "|".join(f" {n} tokens " for n in args.tokens) + "|\n|---|" + "--:|" * len(args.tokens))
    table: dict[str, list[str]] = {}
    for n in args.tokens:
        for name, run in choices(n, args.width, args.threads).items():
            ms, megabytes = measured(run, args.rounds)
            share = 100 * ms / (n / 2 * args.token_ms)
            table.setdefault(name, []).append(f"{ms:.0f}, {share:.1f} %, {megabytes:.0f}")
    for name, cells in table.items():
        print(f"| `{name}` | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
