"""A new user's first hour: each command and example of README.md and docs/start.md, in order, in an empty folder that has
what the pages call photo.jpg, model.gguf, mmproj.gguf and questions.jsonl.

    python tests/manual/first_hour.py [--build] [--seconds 240] [PAGE ...]

Prints a table: the command, its seconds, its status, and the last line that it wrote. What needs the network, a checkout
or a model of gigabytes is listed as not run, with the reason; --build runs make's and pip's commands, too, in a clone of
this repository (many minutes). The exit status is 1 if a command failed.
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
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from clients import ROOT, picture

PAGES = ("README.md", "docs/start.md")
_COMMANDS = re.compile(r"(pyfastv|make|pip|python3) |[A-Z_]+=\S+ ")
_BUILDS = re.compile(r"make |pip |python3 -m venv |CMAKE_ARGS=")
_NOT_RUN = {
    "-hf": "needs the network",
    "--geometry": "writes a model of gigabytes",
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

    from pyfastv.models import bundled_mmproj, bundled_model

    with Image.open(picture("scene.png")) as image:
        image.convert("RGB").save(folder / "photo.jpg")
    shutil.copy(bundled_model(), folder / "model.gguf")
    shutil.copy(bundled_mmproj(), folder / "mmproj.gguf")
    shutil.copytree(ROOT / "tests" / "bench_slice", folder, dirs_exist_ok=True)


def run(step: Step, folder: Path, checkout: Path | None, seconds: float) -> Outcome:
    """One of them."""
    if not step.is_python:
        reason = next((why for part, why in _NOT_RUN.items() if part in step.text), None)
        if reason is None and _BUILDS.match(step.text) and checkout is None:
            reason = "builds: --build"
        if reason is not None:
            return Outcome("not run", reason)
        if step.text.startswith("pyfastv serve"):
            return serve(step, folder, seconds)
    where = checkout if checkout is not None and _BUILDS.match(step.text) else folder
    command = [sys.executable, "-c", step.text] if step.is_python else ["bash", "-c", step.text]
    begin = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=where,
            env=environment(),
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
        ["bash", "-c", f"exec {command}"], cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True
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


def environment() -> dict[str, str]:
    """With our commands before others."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


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
