#!/usr/bin/env python3
"""Time the language-model prefill of stock llama.cpp and of pyfastv, in turn, beside the theoretical ratio.

Two drive.py processes hold the model, one with the unpatched libraries and one with pyfastv's. In every round
each setting is measured once, only one process computing at a time; the order moves on by one from round to
round. One round of warm-up is thrown away. A ratio is stock's time over the setting's of the same round
(above 1: faster than stock); the table gives the median over the rounds.

The prompt is a picture of 576 visual tokens and 14 text tokens behind it, unless options say otherwise. "LM
prefill" is the language model alone: the decoding of every chunk, until logits can be read. The vision
encoder and the generation of some tokens are timed beside it. CPU time is summed over all threads, the
steadier measure on a machine that does other things too, but threads that spin in a barrier count.

    python prefill.py --geometry llava-1.5-7b --stock DIR
    python prefill.py --model M.gguf --mmproj P.gguf --stock DIR --settings off,2:0.5 --json out.json

LLaVA-1.5-7B in Q4_0 needs about 5 GB in each of the two processes, if ggml repacks the weights for the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

from engine import FLASH_ATTENTION

from client import (
    Driver,
    Setting,
    add_common_options,
    apply_setting,
    check_builds,
    parse_settings,
    resolve_common_options,
    setting_name,
)
from theory import Sizes, kept_tokens, theoretical_ratios

Measurement = dict[str, Any]


def measure_rounds(
    stock: Driver, ours: Driver, settings: list[Setting], rounds: int, generate: int
) -> dict[str, list[Measurement]]:
    """Measurements of each row of the table, one a round; the warm-up is left out."""
    entries: list[tuple[str, Driver, Setting]] = [("stock", stock, None)]
    entries += [(setting_name(setting), ours, setting) for setting in settings]
    results: dict[str, list[Measurement]] = {name: [] for name, _, _ in entries}
    for number in range(rounds + 1):
        start = number % len(entries)
        for name, driver, setting in entries[start:] + entries[:start]:
            apply_setting(driver, setting)
            result = driver.request("measure", generate=generate)
            label = f"round {number}/{rounds}" if number else "warm-up"
            print(f"{label}: {name}: prefill {result['prefill_ms']:.0f} ms", file=sys.stderr, flush=True)
            if number:
                results[name].append(result)
    return results


def warn_if_busy(threads: int) -> None:
    """ggml's threads wait in spinning barriers: sharing a core ruins wall and CPU time alike."""
    cores = os.cpu_count() or 1
    if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) + threads > cores + 0.5:
        print(
            f"warning: {cores} cores at a load of {load:.1f}, {threads} threads to measure with: "
            "wait until the machine is quiet, or name fewer --threads",
            file=sys.stderr,
        )


def check_pruned(result: Measurement, setting: Setting, n_visual: int) -> None:
    """A setting that did not prune as asked must not enter the table."""
    if setting is None:
        return
    expected, found = kept_tokens(n_visual, setting[1]), result["report"]["n_visual_entered"][1]
    if found != expected:
        sys.exit(
            f"{setting_name(setting)}: {found} visual tokens were kept, expected {expected} of {n_visual}"
        )


def median_ratio(stock: list[Measurement], other: list[Measurement], key: str) -> float:
    """Median over the rounds of stock's value over the other's of the same round."""
    ratios = [float(a[key]) / float(b[key]) for a, b in zip(stock, other, strict=True)]
    return statistics.median(ratios)


def summarise(
    results: dict[str, list[Measurement]], settings: list[Setting], sizes: Sizes, n_visual: int, n_text: int
) -> list[dict[str, Any]]:
    """One record for each row of the table."""
    rows = []
    stock = results["stock"]
    for name, setting in [("stock", None), *((setting_name(s), s) for s in settings)]:
        runs = results[name]
        for run in runs:
            check_pruned(run, setting, n_visual)
        prefill = [run["prefill_ms"] for run in runs]
        timed = runs[0]["generate"] > 0
        rows.append(
            {
                "setting": name,
                "n_visual_kept": n_visual if setting is None else kept_tokens(n_visual, setting[1]),
                "prefill_ms": {
                    "median": statistics.median(prefill),
                    "min": min(prefill),
                    "max": max(prefill),
                },
                "prefill_cpu_ms": statistics.median(run["prefill_cpu_ms"] for run in runs),
                "ratio_cpu": median_ratio(stock, runs, "prefill_cpu_ms"),
                "ratio_wall": median_ratio(stock, runs, "prefill_ms"),
                "theory": theoretical_ratios(sizes, n_visual, n_text, setting),
                "encoder_ms": statistics.median(run["encoder_ms"] for run in runs),
                "generate_ms": statistics.median(run["generate_ms"] for run in runs) if timed else None,
                "generate_ratio_cpu": median_ratio(stock, runs, "generate_cpu_ms") if timed else None,
                "generate_ratio_wall": median_ratio(stock, runs, "generate_ms") if timed else None,
                "graphs_reused": [run["graphs_reused"] for run in runs],
                "generate": runs[0]["generate"],
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The markdown table. Percentages are of the ratio by CPU time."""
    lines = [
        "| setting | visual tokens kept | LM prefill, ms (min-max) | ratio to stock, CPU time | wall time "
        "| theory (weights) | reached | theory (all) | reached | encoder, ms | generation, ms/token "
        "| generation ratio, CPU time | wall time | graphs reused |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        time, theory, cpu = row["prefill_ms"], row["theory"], row["ratio_cpu"]
        cells = [
            row["setting"],
            f"{row['n_visual_kept']}",
            f"{time['median']:.0f} ({time['min']:.0f}-{time['max']:.0f})",
            f"{cpu:.3f}",
            f"{row['ratio_wall']:.3f}",
            f"{theory['weights']:.2f}",
            f"{cpu / theory['weights']:.1%}",
            f"{theory['all']:.2f}",
            f"{cpu / theory['all']:.1%}",
            f"{row['encoder_ms']:.0f}",
        ]
        if row["generate_ms"] is None:
            cells += ["-"] * 4
        else:
            cells += [
                f"{row['generate_ms']:.1f}",
                f"{row['generate_ratio_cpu']:.3f}",
                f"{row['generate_ratio_wall']:.3f}",
                f"{min(row['graphs_reused'])} of {row['generate']}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_options(parser)
    parser.add_argument(
        "--flash-attention", choices=FLASH_ATTENTION, default="auto", help="default: %(default)s"
    )
    parser.add_argument(
        "--settings",
        type=parse_settings,
        default="off,2:0.5,2:0.75",
        help="off or K:DROP, ... (default: %(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="after the warm-up (default: %(default)s)")
    parser.add_argument("--restarts", type=int, default=1, help="of both processes (default: %(default)s)")
    parser.add_argument(
        "--generate", type=int, default=16, help="tokens after the prompt (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write every measurement and the summary to this file")
    args = parser.parse_args()
    if args.rounds < 1 or args.restarts < 1:
        parser.error("--rounds and --restarts must be at least 1")
    resolve_common_options(parser, args)
    warn_if_busy(args.threads)

    results: dict[str, list[Measurement]] = {}
    for restart in range(args.restarts):
        print(f"loading, {restart + 1} of {args.restarts}", file=sys.stderr, flush=True)
        with (
            Driver("stock", args.stock, args, args.flash_attention) as stock,
            Driver("pyfastv", args.ours, args, args.flash_attention) as ours,
        ):
            infos = {"stock": stock.request("info"), "ours": ours.request("info")}
            check_builds(infos["stock"], infos["ours"], args.settings)
            for name, runs in measure_rounds(stock, ours, args.settings, args.rounds, args.generate).items():
                results.setdefault(name, []).extend(runs)
    info = infos["stock"]
    rows = summarise(results, args.settings, Sizes(**info["sizes"]), info["n_visual"], info["n_text"])

    print(
        f"{args.model.name}: {info['n_visual']} visual and {info['n_text']} text tokens, "
        f"{args.threads} threads, flash attention {args.flash_attention}, "
        f"{args.restarts} x {args.rounds} rounds, llama.cpp {info['llama_version']}\n"
    )
    print(table(rows))
    if args.json:
        record = {
            "machine": {
                "platform": platform.platform(),
                "processor": platform.processor() or platform.machine(),
            },
            "options": {key: str(value) for key, value in vars(args).items()},
            "libraries": infos,
            "summary": rows,
            "measurements": results,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
