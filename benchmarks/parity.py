#!/usr/bin/env python3
"""Compare the logits of stock llama.cpp and of pyfastv over greedy steps after a picture and a question.

Off must be stock, bit for bit. Three things would hide that and are taken out:

- pyfastv has kernels of its own, which round otherwise: PYFASTV_KERNELS is "stock" here unless it is set. Set it to
  "auto" to see what they change.
- pyfastv's libmtmd reads LLaVA's pictures with the CLS embedding first; stock appends it (a llama.cpp bug).
  So the picture is encoded once, by pyfastv's libraries, and both language models decode these very
  embeddings. The encoders themselves are compared with --encoder, on an mmproj without CLS (--geometry has
  none here).
- Both follow the tokens that stock chooses, so that one different choice does not spoil the later steps.

A setting with drop=0 (--settings off k=2,drop=0) runs every token through two stages: with flash attention off
it must be bit-identical too; with it on, ggml picks another kernel for another number of query rows, and the
tolerance applies.

    python parity.py --geometry tiny --stock DIR
    python parity.py --model M.gguf --mmproj P.gguf --stock DIR --prompt 'USER: <image>\\nWhat? ASSISTANT:'

Ends with status 1 if a comparison fails: off and every setting without flash attention by a single bit, a
setting with flash attention by a relative rms above --tolerance.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import pyfastv
from pyfastv import _native
from pyfastv.bench.geometry.files import TYPES, default_cache, make_geometry
from pyfastv.bench.geometry.sizes import GEOMETRIES
from pyfastv.bench.measure import check_comparable
from pyfastv.bench.picture import save_picture
from pyfastv.bench.worker import Worker, start_library_worker
from pyfastv.settings.setting import Setting


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


def start(name: str, libraries: Path, args: argparse.Namespace, flash: str) -> Worker:
    """A process with these libraries."""
    options: dict[str, Any] = {
        "libraries": str(libraries),
        "model": str(args.model),
        "mmproj": str(args.mmproj),
        "picture": str(args.picture),
        "prompt": args.prompt.replace("\\n", "\n"),
        "add_bos": True,
        "version": _native.build_info()["llama_cpp_python"],
        "n_threads": args.threads,
        "n_gpu_layers": args.n_gpu_layers,
        "flash_attn": flash,
    }
    return start_library_worker(name, options)


def compare_flash(args: argparse.Namespace, flash: str, folder: Path) -> bool:
    """All comparisons with one choice of flash attention. `folder` is for the arrays."""
    passed = True
    embeddings, theirs, mine = (str(folder / f"{name}.npy") for name in ("embeddings", "stock", "ours"))
    with (
        start("stock", args.stock, args, flash) as stock,
        start("pyfastv", pyfastv.lib_path(), args, flash) as ours,
    ):
        check_comparable(stock.request("info"), ours.request("info"))
        ours.request("encode", save=embeddings)
        if args.encoder:
            stock.request("encode", save=theirs)
            passed &= compare(f"encoder, flash attention {flash}", np.load(theirs), np.load(embeddings), 0)
        tokens = stock.request("logits", steps=args.steps, save=theirs, embeddings=embeddings)["tokens"]
        for setting in args.settings:
            if setting.fastv is None:
                ours.request("detach")
            else:
                ours.request("attach", spec=setting.fastv.spec())
            ours.request("logits", steps=args.steps, save=mine, embeddings=embeddings, tokens=tokens)
            tolerance = 0 if setting.is_off or flash == "off" else args.tolerance
            name = f"logits, {setting.spec()}, flash attention {flash}"
            passed &= compare(name, np.load(theirs), np.load(mine), tolerance)
    return passed


def main() -> None:
    os.environ.setdefault("PYFASTV_KERNELS", "stock")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stock", type=Path, required=True, help="folder of the unpatched libraries")
    parser.add_argument("--model", type=Path, help="GGUF of the language model")
    parser.add_argument("--mmproj", type=Path, help="GGUF of the vision tower and projector")
    parser.add_argument(
        "--geometry", choices=GEOMETRIES, help="instead of --model: random weights, without CLS"
    )
    parser.add_argument("--type", choices=TYPES, default="Q4_0", help="with --geometry (%(default)s)")
    parser.add_argument("--picture", type=Path, help="a file (default: a drawn one)")
    parser.add_argument(
        "--prompt", default="<image>What is it?", help=r"with <image> once, \n for a new line"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: all cores")
    parser.add_argument("--n-gpu-layers", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=32, help="greedy steps (default: %(default)s)")
    parser.add_argument(
        "--settings",
        nargs="+",
        type=Setting.parse,
        default=[Setting()],
        help="of our libraries: off, k=2,drop=0",
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
    if any(s.fastv is not None and any(cut.drop > 0 for cut in s.fastv.cuts) for s in args.settings):
        parser.error("--settings: only off and drop=0 compute what stock computes")
    if args.geometry:
        args.model, args.mmproj = make_geometry(args.geometry, default_cache(), args.type, cls=False)
    if not args.model or not args.mmproj:
        parser.error("name --model and --mmproj, or --geometry")

    print("| compared | array | max abs difference | relative rms | bit-identical | |")
    print("|---|--:|--:|--:|---|---|")
    with tempfile.TemporaryDirectory(prefix="pyfastv-parity-") as folder:
        args.picture = args.picture or save_picture(Path(folder))
        try:
            passed = [compare_flash(args, flash, Path(folder)) for flash in args.flash_attention]
        except pyfastv.Error as error:
            sys.exit(f"parity.py: {error}")
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
