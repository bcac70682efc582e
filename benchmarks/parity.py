#!/usr/bin/env python3
"""Compare the logits of stock llama.cpp and of pyfastv over greedy steps after a picture and a question.

Off must be stock, bit for bit. Two things would hide that and are taken out:

- pyfastv's libmtmd reads LLaVA's pictures with the CLS embedding first; stock appends it (a llama.cpp bug).
  So the picture is encoded once, by pyfastv's libraries, and both language models decode these very
  embeddings. The encoders themselves are compared with --encoder, on an mmproj without CLS (make_geometry.py
  --no-cls writes one).
- Both follow the tokens that stock chooses, so that one different choice does not spoil the later steps.

A setting with drop=0 (--settings off,2:0) runs every token through two stages: with flash attention off it
must be bit-identical too; with it on, ggml picks another kernel for another number of query rows, and the
tolerance applies.

    python parity.py --model M.gguf --mmproj P.gguf --stock DIR --prompt 'USER: <image>\\nWhat? ASSISTANT:'

Ends with status 1 if a comparison fails: off and every setting without flash attention by a single bit, a
setting with flash attention by a relative rms above --tolerance.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from client import (
    Driver,
    add_common_options,
    apply_setting,
    check_builds,
    parse_settings,
    resolve_common_options,
    setting_name,
)


def compare(name: str, theirs: np.ndarray, ours: np.ndarray, tolerance: float) -> bool:
    """Print a row of the table. `tolerance` of the relative rms; 0: every bit must be equal."""
    identical = theirs.shape == ours.shape and theirs.tobytes() == ours.tobytes()
    difference = ours.astype(np.float64) - theirs.astype(np.float64)
    relative_rms = np.sqrt(np.mean(difference**2) / np.mean(theirs.astype(np.float64) ** 2))
    passed = identical or relative_rms < tolerance
    print(
        f"| {name} | {theirs.shape[0]} x {theirs.shape[1]} | {np.abs(difference).max():.3g} "
        f"| {relative_rms:.3g} | {'yes' if identical else 'no'} | {'pass' if passed else 'FAIL'} |",
        flush=True,
    )
    return bool(passed)


def compare_flash(args: argparse.Namespace, flash: str, folder: Path) -> bool:
    """All comparisons with one choice of flash attention. `folder` is for the arrays."""
    passed = True
    embeddings, theirs, mine = (str(folder / f"{name}.npy") for name in ("embeddings", "stock", "ours"))
    with (
        Driver("stock", args.stock, args, flash) as stock,
        Driver("pyfastv", args.ours, args, flash) as ours,
    ):
        check_builds(stock.request("info"), ours.request("info"), args.settings)
        ours.request("encode", save=embeddings)
        if args.encoder:
            stock.request("encode", save=theirs)
            passed &= compare(f"encoder, flash attention {flash}", np.load(theirs), np.load(embeddings), 0)
        tokens = stock.request("logits", steps=args.steps, save=theirs, embeddings=embeddings)["tokens"]
        for setting in args.settings:
            apply_setting(ours, setting)
            ours.request("logits", steps=args.steps, save=mine, embeddings=embeddings, tokens=tokens)
            tolerance = 0 if setting is None or flash == "off" else args.tolerance
            name = f"logits, {setting_name(setting)}, flash attention {flash}"
            passed &= compare(name, np.load(theirs), np.load(mine), tolerance)
    return passed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_options(parser)
    parser.add_argument("--steps", type=int, default=32, help="greedy steps (default: %(default)s)")
    parser.add_argument(
        "--settings",
        type=parse_settings,
        default="off",
        help="of our libraries: off or K:DROP, ... (%(default)s)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=5e-3,
        help="relative rms of a setting with flash attention (%(default)s)",
    )
    parser.add_argument(
        "--encoder", action="store_true", help="compare the encoders too (an mmproj without CLS)"
    )
    parser.add_argument(
        "--flash-attention",
        nargs="+",
        choices=("off", "on", "auto"),
        default=["off", "on"],
        help="default: off on",
    )
    args = parser.parse_args()
    if any(setting and setting[1] > 0 for setting in args.settings):
        parser.error("--settings: only off and K:0 compute what stock computes")
    resolve_common_options(parser, args)

    print("| compared | array | max abs difference | relative rms | bit-identical | |")
    print("|---|--:|--:|--:|---|---|")
    with tempfile.TemporaryDirectory(prefix="pyfastv-parity-") as folder:
        passed = [compare_flash(args, flash, Path(folder)) for flash in args.flash_attention]
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
