"""Start drive.py for a folder of libraries, talk to it; options that prefill.py and parity.py share."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from drive import add_engine_options

DRIVE = Path(__file__).with_name("drive.py")
HANDED_THROUGH = (
    *("model", "mmproj", "picture", "prompt", "text_tokens"),
    *("threads", "n_ctx", "n_batch", "n_ubatch", "n_gpu_layers"),
)

# glibc moves its mmap threshold as a program goes along, and ggml's buffers then lie more or less well
# aligned, depending on the length of a path: up to 8% of a small model's prefill. With a fixed threshold
# every large buffer has pages of its own.
STEADY_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536"}

Setting = tuple[int, float, str] | None  # k, drop and a name of RULES; None: off
RULES = {"fastv": "score=last,pick=top-k", "recommended": "score=question-max,pick=cover,weigh"}


class Driver:
    """A drive.py process. It computes only while a request is out."""

    def __init__(self, name: str, libraries: Path, args: argparse.Namespace, flash_attention: str) -> None:
        self.name = name
        command = [
            sys.executable,
            str(DRIVE),
            f"--libraries={libraries}",
            f"--flash-attention={flash_attention}",
        ]
        for option in HANDED_THROUGH:
            if (value := getattr(args, option)) is not None:
                command += [f"--{option.replace('_', '-')}={value}"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | STEADY_MALLOC,
        )

    def request(self, do: str, **values: Any) -> dict[str, Any]:
        """Send a request, wait for the answer. A failure ends the program with one line."""
        assert self._process.stdin
        assert self._process.stdout
        try:
            print(json.dumps({"do": do, **values}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            sys.exit(f"the process of the {self.name} libraries ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            sys.exit(f"{self.name} libraries, {do}: {answer['error']}")
        return answer

    def __enter__(self) -> Driver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.close()
            self._process.wait(timeout=20)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()


def check_builds(stock: dict[str, Any], ours: dict[str, Any], settings: list[Setting]) -> None:
    """Refuse to compare libraries of different pins or flags: the ratio would say nothing about FastV."""
    for key in ("llama_version", "ggml_version", "system_info"):
        mine, theirs = (str(info[key]).removesuffix("-dev") for info in (ours, stock))
        if mine != theirs:
            sys.exit(
                f"not comparable: {key} differs\n  stock: {theirs}\n  ours:  {mine}\n"
                "Build the stock libraries of the same pin with the same flags: benchmarks/build_stock.py"
            )
    if stock["has_fastv"]:
        sys.exit(f"{stock['libraries']}: these are pyfastv's libraries, not stock ones")
    if any(settings) and not ours["has_fastv"]:
        sys.exit(
            f"{ours['libraries']}: these are not pyfastv's libraries, they can only be measured with off"
        )


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """The two folders, the model, and what drive.py takes."""
    parser.add_argument(
        "--stock", type=Path, required=True, help="folder of the unpatched libraries (build_stock.py)"
    )
    parser.add_argument(
        "--ours", type=Path, help="folder of pyfastv's libraries (default: the installed package's)"
    )
    parser.add_argument("--model", type=Path, help="GGUF of the language model")
    parser.add_argument("--mmproj", type=Path, help="GGUF of the vision tower and projector")
    parser.add_argument(
        "--geometry", help="instead of --model: random weights, e.g. llava-1.5-7b (make_geometry.py)"
    )
    parser.add_argument(
        "--type", default="Q4_0", help="with --geometry: quantisation type (default: %(default)s)"
    )
    add_engine_options(parser)


def resolve_common_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Fill in the defaults that need work: pyfastv's folder, the files of a geometry."""
    if args.ours is None:
        try:
            import pyfastv
        except ImportError:
            parser.error("pyfastv is not installed: name its libraries with --ours")
        args.ours = Path(pyfastv.lib_path())
    if args.geometry:
        from make_geometry import GEOMETRIES, default_cache, make_geometry

        if args.geometry not in GEOMETRIES:
            parser.error(f"--geometry {args.geometry}: known are {', '.join(GEOMETRIES)}")
        args.model, args.mmproj = make_geometry(args.geometry, default_cache(), args.type)
    if not args.model or not args.mmproj:
        parser.error("name --model and --mmproj, or --geometry")
    for path in (args.stock, args.ours, args.model, args.mmproj):
        if not path.exists():
            parser.error(f"{path}: no such file or folder")


def parse_setting(text: str) -> Setting:
    """Parse `off`, `K:DROP` or `K:DROP:RULE`; FastV's rule by default."""
    if text == "off":
        return None
    try:
        k, drop, rule = (text if text.count(":") > 1 else f"{text}:fastv").split(":")
        RULES[rule]
        return int(k), float(drop), rule
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither off nor K:DROP, as in 2:0.5, nor one of {', '.join(RULES)} behind it"
        ) from None


def parse_settings(text: str) -> list[Setting]:
    """Comma-separated settings."""
    return [parse_setting(part) for part in text.split(",")]


def setting_name(setting: Setting) -> str:
    """As it stands in tables."""
    if setting is None:
        return "off"
    k, drop, rule = setting
    return f"K={k} drop {drop:g}{'' if rule == 'fastv' else f' {rule}'}"


def apply_setting(driver: Driver, setting: Setting) -> None:
    """Stages on or off in a process of our libraries."""
    if setting is None:
        driver.request("detach")
    else:
        k, drop, rule = setting
        driver.request("attach", spec=f"k={k},drop={drop},{RULES[rule]}")
