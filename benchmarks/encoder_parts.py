#!/usr/bin/env python3
"""Share a vision encoder's time out by part: products, attention, the rest. Linux's perf takes the samples.

The functions of the CPU backend must have their names, which an installed library has lost:

    pip install . -C install.strip=false
    python encoder_parts.py MODEL.gguf MMPROJ.gguf

Two rows: llama.cpp's kernels with the file as it is, and ours with encoder_type "auto". Each is a process of its own that
encodes drawn noise, once before the samples are taken and --pictures times while they are. The machine must be quiet.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAYS = {"stock": ("stock", "stock"), "ours": ("auto", "auto")}  # PYFASTV_KERNELS, encoder_type

# by the name of a function, the first that is found in it; what nothing is found in is the rest
PARTS = {
    "attention": r"flash_attn|soft_max|score<|soften|add_values|load_block|attend",
    "products": r"tinyBLAS|mul_mat|multiply|vec_dot|scaled_activations|unpack|::pack\b",
}


def encode(args: argparse.Namespace) -> None:
    """The measured process: tells when it is ready, waits for a line, encodes, and says how long a picture took."""
    import numpy as np

    import pyfastv

    rng = np.random.default_rng(0)
    with pyfastv.Runner(
        args.model, args.mmproj, n_threads=args.threads, encoder_type=os.environ["ENCODER_TYPE"]
    ) as runner:

        def picture(name: str) -> None:
            pixels = rng.integers(0, 256, (args.side, args.side, 3), dtype=np.uint8)
            runner._engine.embed(pixels, name)  # the encoder alone has no public door

        picture("first")
        print("ready", flush=True)
        input()
        begin = time.perf_counter()
        for i in range(args.pictures):
            picture(str(i))
        print((time.perf_counter() - begin) / args.pictures, flush=True)


def measure(args: argparse.Namespace, way: str, perf: str) -> tuple[float, dict[str, float]]:
    """Seconds a picture, and the share of each part."""
    kernels, encoder_type = WAYS[way]
    env = os.environ | {"PYFASTV_KERNELS": kernels, "ENCODER_TYPE": encoder_type}
    with tempfile.TemporaryDirectory() as folder:
        samples = str(Path(folder) / "samples")
        child = subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--encode"],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        if child.stdout.readline() != "ready\n":
            sys.exit(f"encoder_parts.py: the process of {way} ended with {child.wait()}")
        command = [perf, "record", "-q", "-F", "299", "-o", samples, "-p", str(child.pid)]
        with subprocess.Popen(command) as recording:  # ends with the process
            time.sleep(0.5)
            seconds = float(child.communicate("go\n")[0])
            recording.wait()
        listed = subprocess.run(
            [perf, "report", "-i", samples, "--stdio", "--no-children", "-F", "overhead,symbol"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    shares = dict.fromkeys([*PARTS, "rest"], 0.0)
    for percent, name in re.findall(r"^\s*([\d.]+)%\s+(.*)$", listed, re.M):
        part = next((part for part, names in PARTS.items() if re.search(names, name)), "rest")
        shares[part] += float(percent) / 100
    if shares["products"] == 0:
        sys.exit("encoder_parts.py: functions have no names: pip install . -C install.strip=false")
    return seconds, shares


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="GGUF of the language model")
    parser.add_argument("mmproj", help="GGUF of the vision encoder, in f16")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: all cores")
    parser.add_argument("--side", type=int, default=672, help="of the picture, in pixels (%(default)s)")
    parser.add_argument("--pictures", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--encode", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.encode:
        encode(args)
        return
    perf = shutil.which("perf")
    if perf is None:
        sys.exit("encoder_parts.py: no perf; it is in Debian's linux-perf")
    print("| encoder | products, s | attention, s | rest, s | whole, s |\n|---|--:|--:|--:|--:|")
    for way in WAYS:
        seconds, shares = measure(args, way, perf)
        cells = [f"{seconds * shares[part]:.2f}" for part in ("products", "attention", "rest")]
        print(f"| {way} | {' | '.join(cells)} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
