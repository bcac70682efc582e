#!/usr/bin/env python3
"""The speed of products of weights with rows of activations, of stock llama.cpp and of pyfastv, in turn.

    python products.py --stock build/stock/lib
    python products.py --stock build/stock/lib --types q4_0 f16 --rows 1 590 --size 4096x4096 --kernels auto avx2
    python products.py --stock build/stock/lib --types q4_0 q4_K --size 2048x768 --experts 128 --used 8

A column for stock's weights as they lie in a file, one for its repacked ones (what its models run where there is such a
form), one for those that it packs for AMX where the CPU has that, one for every choice of PYFASTV_KERNELS.
Giga-operations a second (two a multiplication), the best of the rounds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from rate_process import RateProcess, compile_program

import pyfastv

from build_stock import has_amx

TYPES = ("q4_0", "q5_0", "q8_0", "iq4_nl", "q4_K", "q5_K", "q6_K", "f16")
ROWS = (1, 4, 16, 64, 160, 590, 2048)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--stock", type=Path, required=True, help="folder of stock's libraries (build_stock.py)"
    )
    parser.add_argument("--types", nargs="+", default=TYPES, help="of weights (default: %(default)s)")
    parser.add_argument(
        "--rows", nargs="+", type=int, default=ROWS, help="of activations (default: %(default)s)"
    )
    parser.add_argument(
        "--size", default="4096x4096", help="of the weights, COLUMNSxOUTPUTS (default: %(default)s)"
    )
    parser.add_argument(
        "--experts", type=int, default=0, help="matrices of a mixture of experts (default: ordinary products)"
    )
    parser.add_argument("--used", type=int, default=8, help="experts of a row (default: %(default)s)")
    parser.add_argument(
        "--kernels", nargs="+", default=["auto"], help="PYFASTV_KERNELS (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="of all columns in turn (default: %(default)s)")
    parser.add_argument(
        "--work", type=float, default=2, help="giga-operations a measurement (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write the rates here, too")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        program = compile_program("product_rate.cpp", Path(folder), "ggml", "ggml-cpu", "ggml-base")
        stock = RateProcess(program, args.stock.resolve(), None)
        columns = {"stock, plain": (stock, "CPU"), "stock, repacked": (stock, "CPU_REPACK")}
        if has_amx():
            columns["stock, AMX"] = (stock, "AMX")
        for kernels in args.kernels:
            columns[f"ours, {kernels}"] = (RateProcess(program, pyfastv.lib_path(), kernels), "CPU_PYFASTV")

        print("| type | rows | peak | " + " | ".join(columns) + " | ours / stock's better |")
        print("|---|--:|--:|" + "--:|" * (len(columns) + 1))
        rates: list[dict[str, object]] = []
        for kind in args.types:
            if kind.endswith("_K") and int(args.size.split("x")[0]) % 256:
                continue  # no whole number of blocks
            for rows in args.rows:
                best: dict[str, float] = {}

                def line(buffers: str, kind: str = kind, rows: int = rows) -> str:
                    size = f"{args.size.replace('x', ' ')} {args.experts} {args.used}"
                    return f"{kind} {rows} {size} {buffers} {args.threads} {args.work}"

                for _ in range(args.rounds):
                    peak = stock.ask(f"peak {args.threads}") or 0
                    best["peak"] = max(best.get("peak", 0), peak)
                    for name, (side, buffers) in columns.items():
                        time.sleep(0.05)  # until the threads of the last one have stopped spinning
                        rate = side.ask(line(buffers))
                        if rate is None and name.startswith("ours"):  # llama.cpp's
                            rate = side.ask(line("CPU"))
                        best[name] = max(best.get(name, 0), rate or 0)
                theirs = max(rate for name, rate in best.items() if name.startswith("stock"))
                ours = best[f"ours, {args.kernels[0]}"]
                cells = [f"{rate:.0f}" if rate else "" for rate in best.values()]
                print(f"| {kind} | {rows} | " + " | ".join(cells) + f" | {ours / theirs:.2f} |", flush=True)
                rates.append({"type": kind, "rows": rows, **best})
        for side, _ in columns.values():
            side.close()
        if args.json:
            args.json.write_text(json.dumps(rates, indent=1) + "\n")


if __name__ == "__main__":
    main()
