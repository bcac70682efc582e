"""What the scripts of this folder share: an environment for a client, a server of the bundled model, and what was seen.

A script runs twice: under the Python that has pyfastv, where it makes the client's environment and starts the server, and
under that environment's Python, where it asks. So it imports nothing but the standard library at its top.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / "build" / "clients"
CLIENT_SECONDS = 600.0
_SERVED = "PYFASTV_MANUAL_SERVED"  # the second run: its server's address

CLOCK, QUESTION, ANSWER = "clock.png", "Read the clock.", "It is 9:10."


@dataclass
class Served:
    """A server of the bundled model, and what was seen of it."""

    url: str
    """Without a path: ``http://127.0.0.1:PORT``."""
    wrong: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        """Of the address."""
        return int(self.url.rsplit(":", 1)[1])

    def check(self, what: str, seen: object, expected: str | Callable[[str], bool]) -> None:
        """Prints what was seen, and whether it is what was expected: a text, or what holds of it."""
        text = str(seen).strip()
        right = expected(text) if callable(expected) else _bare(text) == _bare(expected)
        print(f"{what}: {text!r}, {'right' if right else 'WRONG'}", flush=True)
        if not right:
            self.wrong.append(what)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part that fails is told, and the next one begins."""
        begin = time.monotonic()
        try:
            yield
        except Exception as error:
            traceback.print_exc(limit=-3)
            print(f"{name}: FAILED, {type(error).__name__}: {str(error)[:500]}", flush=True)
            self.wrong.append(name)
        print(f"{name}: {time.monotonic() - begin:.1f} s", flush=True)


Part = Callable[[Served], None]


def picture(name: str = CLOCK) -> Path:
    """A bundled picture."""
    return ROOT / "pyfastv" / "data" / name


def data_uri(name: str = CLOCK) -> str:
    """A bundled picture as clients send it."""
    return f"data:image/png;base64,{base64.b64encode(picture(name).read_bytes()).decode()}"


def openai_message(question: str = QUESTION, *pictures: str) -> dict[str, object]:
    """A message of the user in OpenAI's form, its pictures first."""
    parts = [{"type": "image_url", "image_url": {"url": data_uri(name)}} for name in pictures]
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}


def main(
    parts: Mapping[str, Part],
    packages: Sequence[str],
    *,
    options: Sequence[str] = (),
    python: str = sys.executable,
    source: str | None = None,
) -> NoReturn:
    """Runs a script: its ``parts``, or those that the command line names, against a server started with ``options``.

    ``packages`` are installed by name into an environment that is kept (build/clients/NAME), made by ``python``.
    ``source``: what the folder of a public checkout is, which the command line then names first; see source_folder().
    The exit status is 1 if anything was wrong.
    """
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    if source is not None:
        parser.add_argument("source_dir", type=Path, metavar="SOURCE_DIR", help=source)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}; all without")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(parts):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    address = os.environ.get(_SERVED)
    if address is None:
        executable = environment(Path(sys.argv[0]).stem, packages, python)
        with serving(*options) as url:
            env = os.environ | {_SERVED: url}
            done = subprocess.run([executable, *sys.argv], env=env, timeout=CLIENT_SECONDS)
        sys.exit(done.returncode)

    print(", ".join(f"{name} {version(name)}" for name in map(_distribution, packages)), flush=True)
    served = Served(address)
    for name in arguments.parts or parts:
        with served.part(name):
            parts[name](served)
    print(f"wrong: {', '.join(served.wrong)}" if served.wrong else "all right")
    sys.exit(bool(served.wrong))


def source_folder() -> Path:
    """Of the checkout that the command line names."""
    return Path(sys.argv[1]).absolute()


def environment(name: str, packages: Sequence[str], python: str = sys.executable) -> Path:
    """The interpreter of an environment with these packages, which is made once."""
    folder = ENVIRONMENTS / name
    executable = folder / "bin" / "python"
    if not executable.exists():
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
    pip = [executable, "-m", "pip", "install", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, *packages], check=True)
    return executable


@contextmanager
def serving(*options: str) -> Iterator[str]:
    """The address of a server of the bundled model on a free port."""
    command = [sys.executable, "-m", "pyfastv", "serve", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path.home()) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"http://[^\s/]+", server.stdout.readline())
            if found is None:
                sys.exit("pyfastv serve did not start")
            yield found[0]
        finally:
            server.terminate()


def _distribution(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]


def _bare(text: str) -> str:
    return " ".join(text.split()).casefold().rstrip(".")
