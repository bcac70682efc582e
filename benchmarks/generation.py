#!/usr/bin/env python3
"""Tokens a second, of stock llama.cpp and of pyfastv, a few tokens in turn.

    python generation.py --stock build/stock/lib
    python generation.py --stock build/stock/lib --types Q4_0 Q4_K --geometry qwen3-vl-2b --rounds 100

A token is bound by memory, whose speed on a shared machine changes from second to second: so the two take turns after a
few tokens, and a ratio is taken turn by turn.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from rate_process import RateProcess, compile_program

import pyfastv
from pyfastv.bench.geometry.files import default_cache, make_geometry
from pyfastv.bench.ratios import compare

TYPES = ("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "Q4_K", "Q5_K", "Q6_K")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--stock", type=Path, required=True, help="folder of stock's libraries (build_stock.py)"
    )
    parser.add_argument("--geometry", default="qwen3-vl-2b", help="(default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder of the geometries")
    parser.add_argument("--types", nargs="+", default=TYPES, help="of weights (default: %(default)s)")
    parser.add_argument("--kernels", default="auto", help="PYFASTV_KERNELS (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=40, help="turns of both (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=8, help="a turn (default: %(default)s)")
    args = parser.parse_args()

    print("| type | stock, tokens/s | ours | ours / stock |")
    print("|---|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        program = compile_program("generation_rate.cpp", Path(folder), "llama", "ggml", "ggml-base")
        for kind in args.types:
            model, _ = make_geometry(args.geometry, args.cache, kind)
            sides = [
                RateProcess(program, libraries, kernels, str(model), str(args.threads))
                for libraries, kernels in ((args.stock.resolve(), None), (pyfastv.lib_path(), args.kernels))
            ]
            times: list[list[float]] = [[], []]
            for i in range(args.rounds + 1):
                for j in (0, 1) if i % 2 == 0 else (1, 0):
                    time.sleep(0.02)  # until the threads of the other have stopped spinning
                    took = sides[j].ask(str(args.tokens))
                    if i > 0:
                        times[j].append(took or 0)
            for side in sides:
                side.close()
            stock, ours = (1000 / statistics.median(x) for x in times)
            ratio = compare(times[:1], times[1:])
            print(
                f"| {kind} | {stock:.1f} | {ours:.1f} | {ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] |",
                flush=True,
            )


if __name__ == "__main__":
    main()
