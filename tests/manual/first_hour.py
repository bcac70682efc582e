"""A new user's first hour: each command and example of README.md and the pages of docs/ that it leads to, in order, in an
empty folder that has what they call photo.jpg, model.gguf, mmproj.gguf, questions.jsonl and the like, with a new home.

    python tests/manual/first_hour.py [--build] [--seconds 240] [PAGE ...]

Prints a table: the command, its seconds, its status, and the last line that it wrote. What needs the network, a checkout
or a model of gigabytes is listed as not run, with the reason; --build runs make's and pip's commands, too, in a clone of
this repository (many minutes). The exit status is 1 if a command failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients import ROOT, picture

PAGES = (
    "README.md",
    *(
        f"docs/{name}.md"
        for name in ("start", "cli", "serve", "show", "video", "plan", "reduce", "eval", "tune")
    ),
)
_COMMANDS = re.compile(r"(pyfastv|make|pip|python3) |[A-Z_]+=\S+ ")
_BUILDS = re.compile(r"make |pip |python3 -m venv |CMAKE_ARGS=")
_NOT_RUN = {
    "-hf": "needs the network",
    "owner/": "needs the network",
    "--geometry": "writes a model of gigabytes",
    "BENCH": "needs a bench of thousands of questions",
    "13b.gguf": "needs two models",
    "-random-": "needs a model of gigabytes",
    "llama-server": "needs llama.cpp's programs",
}


@dataclass(frozen=True)
class Step:
    """A command of a page, or a program."""

    text: str
    is_python: bool = False

    @property
    def title(self) -> str:
        """A line of it."""
        return self.text.splitlines()[0] + (" ..." if "\n" in self.text.strip() else "")


@dataclass(frozen=True)
class Outcome:
    """What became of it."""

    status: str
    said: str
    seconds: float = 0.0


def in_order(text: str) -> list[Step]:
    """The programs of a page's fences, and the commands of its indented blocks."""
    fences = list(re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.M | re.S))
    found = [(fence.start(), Step(fence[2], True)) for fence in fences if fence[1] == "python"]
    for match in re.finditer(r"^(?:    [^\n]*\n)+", text, re.M):
        if any(fence.start() <= match.start() < fence.end() for fence in fences):
            continue
        block = re.sub(r"\\\n\s*", "", re.sub(r"^    ", "", match[0], flags=re.M))
        found += [(match.start(), Step(line)) for line in block.splitlines() if _COMMANDS.match(line)]
    return [step for _, step in sorted(found, key=lambda pair: pair[0])]


def furnish(folder: Path) -> None:
    """What the pages take for granted."""
    from PIL import Image

    from pyfastv.models import bundled_examples, bundled_mmproj, bundled_model

    with Image.open(picture("scene.png")) as image:
        for name in ("photo", "one", "two"):
            image.convert("RGB").save(folder / f"{name}.jpg")
    (folder / "question.txt").write_text("What is this?\n")
    shutil.copy(bundled_model(), folder / "model.gguf")
    shutil.copy(bundled_mmproj(), folder / "mmproj.gguf")
    # beside the model it would be a second one; it is f32, which is quantized like f16
    sys.path.insert(0, str(ROOT / "tests" / "reference"))
    from dequantize import dequantize

    (folder / "f16").mkdir()
    dequantize(bundled_mmproj(), folder / "f16" / "mmproj-f16.gguf")
    film(folder / "clip.mp4")
    examples = bundled_examples()
    for example in examples:
        shutil.copy(example.picture, folder)
    lines = [(example.picture.name, example.question, example.answer) for example in examples]
    questions = [dict(zip(("image", "question", "answer"), line, strict=True)) for line in lines]
    (folder / "questions.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in questions))


def film(path: Path) -> None:
    """Two seconds of a bundled picture; nothing without the extra video."""
    try:
        import av
    except ImportError:
        return
    with av.open(str(path), "w") as clip:
        stream = clip.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 336
        frame = av.VideoFrame.from_image(_rgb(picture("clock.png")))
        for packet in [*(packet for _ in range(16) for packet in stream.encode(frame)), *stream.encode()]:
            clip.mux(packet)


def _rgb(path: Path) -> Any:
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")


def run(step: Step, folder: Path, checkout: Path | None, seconds: float) -> Outcome:
    """One of them."""
    if not step.is_python:
        reason = next((why for part, why in _NOT_RUN.items() if part in step.text), None)
        if reason is None and _BUILDS.match(step.text) and checkout is None:
            reason = "builds: --build"
        if "clip.mp4" in step.text and not (folder / "clip.mp4").exists():
            reason = "needs the extra video"
        if reason is not None:
            return Outcome("not run", reason)
        if "pyfastv serve" in step.text:
            return serve(step, folder, seconds)
    where = checkout if checkout is not None and _BUILDS.match(step.text) else folder
    where = folder / "f16" if "mmproj-f16.gguf" in step.text else where
    command = [sys.executable, "-c", step.text] if step.is_python else ["bash", "-c", step.text]
    begin = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=where,
            env=environment(folder),
            input="What is this?\n",  # of chat
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return Outcome("too long", f"not done after {seconds:.0f} s", time.monotonic() - begin)
    lines = done.stdout.strip().splitlines() or [""]
    return Outcome(str(done.returncode), lines[-1], time.monotonic() - begin)


def serve(step: Step, folder: Path, seconds: float) -> Outcome:
    """Started, asked for its health, and ended."""
    command = step.text.split("#")[0] + " --port 0"
    begin = time.monotonic()
    with subprocess.Popen(
        ["bash", "-c", f"exec env {command}"],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        found = re.search(r"http://[^\s/]+", server.stdout.readline())
        try:
            if found is None:
                return Outcome("failed", "it did not start", time.monotonic() - begin)
            with urllib.request.urlopen(f"{found[0]}/health", timeout=seconds) as answer:
                said = answer.read().decode()
            return Outcome("0", said, time.monotonic() - begin)
        finally:
            server.terminate()


def environment(folder: Path) -> dict[str, str]:
    """With our commands before others, and a home that nobody has lived in."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "PYFASTV_", "HF_"))
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return kept | {"PATH": path, "HOME": str(folder.with_name("home"))}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="*", metavar="PAGE", default=PAGES)
    parser.add_argument("--build", action="store_true", help="run make's and pip's commands, in a clone")
    parser.add_argument("--seconds", type=float, default=240.0, help="the most for one command")
    arguments = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "empty"
        folder.mkdir()
        folder.with_name("home").mkdir()
        furnish(folder)
        checkout = None
        if arguments.build:
            checkout = Path(name) / "pyfastv"
            subprocess.run(["git", "clone", "-q", str(ROOT), str(checkout)], check=True)
        print("| page | command | s | status | it said |\n|---|---|--:|---|---|")
        for page in arguments.pages:
            for step in in_order((ROOT / page).read_text("utf-8")):
                outcome = run(step, folder, checkout, arguments.seconds)
                failed += outcome.status not in ("0", "not run")
                cells = [
                    page,
                    f"`{step.title}`",
                    f"{outcome.seconds:.1f}",
                    outcome.status,
                    outcome.said[:120],
                ]
                print(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |", flush=True)
    print(f"failed: {failed}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
