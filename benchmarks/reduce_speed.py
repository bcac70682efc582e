"""What choosing costs, beside the prefill that it saves: every reducer on 2,880 tokens of width 4,096, 1,440 kept.

    python benchmarks/reduce_speed.py
    python benchmarks/reduce_speed.py --tokens 576 --width 4096 --keep 288 --threads 2

Prints Markdown. 2,880 tokens: five slices of 24 x 24, as LLaVA-NeXT cuts a picture. --token-ms: prefill of one token by
the language model; 25 is what LLaVA-1.5-7B takes, Q4_0, on 2 threads of the machine of the README.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from pyfastv import EVS, CDPruner, DivPrune, Merge, PLLaVA, Pool, Stride, VidCom2, _native


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2880, help="a multiple of 576 (default: %(default)s)")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--keep", type=int, default=1440)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--token-ms", type=float, default=25.0)
    args = parser.parse_args()

    n, keep = args.tokens, args.keep
    grids = [(24, 24)] * (n // 576)
    rng = np.random.default_rng(0)
    # neighbors alike, as in a picture
    fine = rng.normal(size=(n, args.width)).astype(np.float32)
    coarse = np.repeat(rng.normal(size=(n // 12, args.width)).astype(np.float32), 12, axis=0)
    embeddings, question = fine + 2 * coarse, fine[:5].mean(axis=0)

    reducers = (
        Pool(keep=keep),
        Stride(keep),
        Merge(keep),
        DivPrune(keep),
        CDPruner(keep),
        VidCom2(keep),
        EVS(1 - keep / n),
        PLLaVA(max(1, len(grids) // 2), 2),
    )
    print(f"{n} tokens of width {args.width}, {args.threads} threads, medians of {args.rounds}:\n")
    print("| reducer | tokens left | ms | of the prefill saved, % |\n|---|--:|--:|--:|")
    for reducer in reducers:
        times = []
        for _ in range(args.rounds):
            begin = time.perf_counter()
            made = _native.reduce(
                embeddings, reducer.spec(), grids=grids, question=question, n_threads=args.threads
            )
            times.append((time.perf_counter() - begin) * 1000)
        left, ms = len(made["place"]), statistics.median(times)
        print(f"| `{reducer.spec()}` | {left} | {ms:.0f} | {100 * ms / ((n - left) * args.token_ms):.2f} |")


if __name__ == "__main__":
    main()
