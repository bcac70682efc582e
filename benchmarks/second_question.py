"""What another question about the same picture costs, beside the first: llama-server of the pin, with its own libraries,
and pyfastv, in turn; and whether pyfastv's logits are those of the question computed anew.

    make programs
    python benchmarks/second_question.py --geometry qwen3.5-0.8b --settings off k=4,drop=0.5 k=4,drop=0.75
    python benchmarks/second_question.py --geometry qwen3.5-4b --layers 12 --settings off k=4,drop=0.5

A time is that of a whole request with one token: tokens, encoder, prefill. Every round has a picture of its own, so that
the first question finds nothing. Prints Markdown; ends with an error if logits differ.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import statistics
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import pyfastv
from pyfastv.bench.geometry.files import default_cache, make_geometry
from pyfastv.bench.picture import drawn_picture

from server_process import SECONDS, start_llama_server

STOCK = "llama-server"
N_CTX = 2048


@dataclass
class Measured:
    """Of a setting, a number a round."""

    first_ms: list[float] = field(default_factory=list)
    second_ms: list[float] = field(default_factory=list)
    tokens: int = 0
    """Of the second question's prompt that were computed."""
    same: bool | None = None
    """As computed anew, to the bit; None: not compared."""

    def row(self, name: str) -> str:
        ratio = statistics.median(a / b for a, b in zip(self.first_ms, self.second_ms, strict=True))
        same = {None: "", True: "yes", False: "NO"}[self.same]
        cells = [name, spread(self.first_ms), spread(self.second_ms), self.tokens, f"{ratio:.1f}", same]
        return f"| {' | '.join(map(str, cells))} |"


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f}-{max(values):.0f})"


def another(picture: np.ndarray, seed: int) -> np.ndarray:
    """The same to look at."""
    noise = np.random.default_rng(seed).integers(-3, 4, picture.shape)
    return np.clip(picture.astype(int) + noise, 0, 255).astype(np.uint8)


class Stock:
    """A llama-server, whose prompts are as the runner's."""

    def __init__(self, url: str) -> None:
        self._url = url
        with urllib.request.urlopen(f"{url}/props", timeout=SECONDS) as response:
            self._marker = json.load(response)["media_marker"]

    def ask(self, png: str, question: str) -> tuple[float, dict[str, Any]]:
        """Milliseconds, and the server's own account."""
        prompt = {"prompt_string": f"{self._marker}\n{question}", "multimodal_data": [png]}
        body = {"prompt": prompt, "n_predict": 1, "temperature": 0, "cache_prompt": True}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._url}/completion", json.dumps(body).encode(), headers)
        begin = time.perf_counter()
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            timings = json.load(response)["timings"]
        return (time.perf_counter() - begin) * 1000, timings

    def measure(self, measured: Measured, picture: np.ndarray, questions: tuple[str, str]) -> None:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        png = base64.b64encode(file.getvalue()).decode()
        for question, times in zip(questions, (measured.first_ms, measured.second_ms), strict=True):
            spent, timings = self.ask(png, question)
            times.append(spent)
        measured.tokens = timings["prompt_n"]


class Ours:
    def __init__(self, runner: pyfastv.Runner) -> None:
        self._runner, self._engine = runner, runner._engine

    def ask(self, picture: np.ndarray, question: str) -> tuple[float, np.ndarray]:
        prompt = f"{self._engine.media_marker}\n{question}"
        begin = time.perf_counter()
        self._engine.prefill(prompt, [picture], [str(hash(picture.tobytes()))], None, True, 1)
        logits = self._engine.logits()
        return (time.perf_counter() - begin) * 1000, np.array(logits)

    def measure(
        self, setting: str, measured: Measured, picture: np.ndarray, questions: tuple[str, str]
    ) -> None:
        self._runner.set_fastv(setting)
        self._engine.reset()
        measured.first_ms.append(self.ask(picture, questions[0])[0])
        spent, logits = self.ask(picture, questions[1])
        measured.second_ms.append(spent)
        report = self._engine.report()
        measured.tokens = report.prompt_tokens - report.cached_tokens
        self._engine.reset()
        _, anew = self.ask(picture, questions[1])
        measured.same = measured.same is not False and np.array_equal(logits, anew)


@contextmanager
def started(arguments: argparse.Namespace, files: tuple[Path, Path]) -> Iterator[Stock | None]:
    if arguments.server is None:
        yield None
        return
    options = ("--model", files[0], "--mmproj", files[1], "--threads", arguments.threads, "-c", N_CTX)
    # one slot, and prompts that left it are not kept: each round has a first question
    with start_llama_server(arguments.server, *options, "--parallel", 1, "--cache-ram", 0) as url:
        yield Stock(url)


def told(done: float, total: float) -> None:
    print(f"\rwriting {done / max(total, 1):.0%}", end="", file=sys.stderr, flush=True)


def files_of(arguments: argparse.Namespace) -> tuple[Path, Path]:
    if arguments.geometry is None:
        return arguments.model, arguments.mmproj
    cache = arguments.cache or default_cache()
    return make_geometry(arguments.geometry, cache, arguments.type, layers=arguments.layers, progress=told)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--geometry", help="random weights of published sizes (pyfastv bench --list)")
    parser.add_argument("--layers", type=int, help="with --geometry: the language model's first layers alone")
    parser.add_argument("--type", default="Q4_0", help="with --geometry (default: %(default)s)")
    parser.add_argument("--cache", type=Path, help="folder of geometries (default: the user's cache)")
    parser.add_argument("--model", type=Path, help="in place of --geometry, with --mmproj")
    parser.add_argument("--mmproj", type=Path)
    parser.add_argument("--server", type=Path, help="llama-server of the pin (default: none is measured)")
    parser.add_argument("--settings", nargs="+", default=["off"], help="of pyfastv (default: off)")
    parser.add_argument(
        "--question", type=int, default=14, help="letters of a question (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="behind one that warms up (default: 3)")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if (arguments.geometry is None) == (arguments.model is None or arguments.mmproj is None):
        parser.error("either --geometry, or --model and --mmproj")

    files = files_of(arguments)
    questions = ("a" * arguments.question, "b" * arguments.question)
    measured: dict[str, Measured] = {}
    with (
        started(arguments, files) as stock,
        pyfastv.Runner(
            *files,
            n_ctx=N_CTX,
            n_threads=arguments.threads,
            fastv=None,
            encoder_cache_mb=0,
            encoder_type="stock",
        ) as runner,
    ):
        ours = Ours(runner)
        names = [*([STOCK] if stock else []), *arguments.settings]
        for number in range(arguments.rounds + 1):
            picture = another(drawn_picture(), number)
            for name in names:
                print(
                    f"\rround {number} of {arguments.rounds}: {name:40}", end="", file=sys.stderr, flush=True
                )
                into = measured.setdefault(name, Measured()) if number else Measured()
                if name == STOCK and stock is not None:
                    stock.measure(into, picture, questions)
                else:
                    ours.measure(name, into, picture, questions)
    print(file=sys.stderr)

    layers = f", the first {arguments.layers} layers" if arguments.layers else ""
    print(f"{files[0].name}{layers}, {arguments.threads} threads, {arguments.rounds} rounds:\n")
    print("| | first question, ms | another, ms | its tokens | ratio | as anew, to the bit |")
    print("|---|--:|--:|--:|--:|---|")
    for name in names:
        print(measured[name].row(name))
    raise SystemExit(any(each.same is False for each in measured.values()))


if __name__ == "__main__":
    main()
