#!/usr/bin/env python3
"""What a clip costs on a model whose encoder takes two frames at once (Qwen's): tokens, and times to the first token.

    python benchmarks/video.py --geometry qwen2.5-vl-3b --frames 8

Two rows, in turn, --rounds times each, medians: `one by one`, every frame a picture of its own, and `pairs`, frames of
one video. The clip is drawn: a scene that moves. With --model and --mmproj a model's own files in place of random
weights; with --fastv a schedule for both. The machine must be quiet.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import pyfastv
from pyfastv import Report
from pyfastv.bench.geometry.files import default_cache, make_geometry
from pyfastv.bench.picture import drawn_picture


def clip(n: int, width: int, height: int, number: int) -> list[NDArray[np.uint8]]:
    """Frames of a window that moves over a drawn scene; ``number``: other pixels, so that nothing is known of them."""
    scene = drawn_picture(max(width, height) + 8 * n)
    frames = [np.ascontiguousarray(scene[4 * i : 4 * i + height, 8 * i : 8 * i + width]) for i in range(n)]
    for frame in frames:
        frame[0, 0] = number % 256, number // 256, 0
    return frames


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--geometry", default="qwen2.5-vl-3b", help="default: %(default)s")
    parser.add_argument(
        "--cache", type=Path, default=default_cache(), help="where its files are: %(default)s"
    )
    parser.add_argument("--model", type=Path, help="a language model's file, in place of a geometry")
    parser.add_argument("--mmproj", type=Path, help="its vision encoder")
    parser.add_argument("--frames", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--size", default="448x448", help="of a frame, WIDTHxHEIGHT (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--fastv", help="a schedule (none)")
    parser.add_argument("--encoder-type", default="auto", help="default: %(default)s")
    args = parser.parse_args()
    if (args.model is None) != (args.mmproj is None):
        sys.exit("video.py: --model and --mmproj go together")
    files = (args.model, args.mmproj) if args.model else make_geometry(args.geometry, args.cache)
    width, height = map(int, args.size.split("x"))

    reports: dict[str, list[Report]] = {"one by one": [], "pairs": []}
    with pyfastv.Runner(
        *files,
        n_ctx=4096 + 1024 * args.frames,
        n_threads=args.threads,
        fastv=args.fastv,
        encoder_cache_mb=0,
        encoder_type=args.encoder_type,
    ) as runner:
        for number in range(args.rounds + 1):  # the first pays for the start
            for way, found in reports.items():
                frames = clip(args.frames, width, height, 2 * number + (way == "pairs"))
                given = {"video": frames} if way == "pairs" else {"image": frames}
                answer = runner.ask(question="What happens?", max_tokens=1, **given)
                found.append(answer.report)

    print(f"{args.frames} frames of {args.size}, medians of {args.rounds}, {runner.info['description']}\n")
    print(
        "| frames | visual tokens | prompt | encoder, s | prefill, s | first token, s |\n|---|--:|--:|--:|--:|--:|"
    )
    for way, found in reports.items():
        cells = [
            f"{statistics.median(getattr(report, name) for report in found[1:]) / 1000:.2f}"
            for name in ("encode_ms", "prefill_ms", "first_token_ms")
        ]
        print(f"| {way} | {found[-1].visual_tokens} | {found[-1].prompt_tokens} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
