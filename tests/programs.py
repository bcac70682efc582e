"""llama.cpp's own programs, built unpatched, with our libraries or with their own."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import pyfastv
from pyfastv.models import bundled_mmproj, bundled_model

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "programs.md"
STOCK = ROOT / "build" / "stock" / "bin"  # programs, and their own libraries beside them
MTMD_CLI, SERVER = STOCK / "llama-mtmd-cli", STOCK / "llama-server"
MAX_TOKENS = 32

needs_programs = pytest.mark.skipif(
    not (MTMD_CLI.exists() and SERVER.exists()),
    reason=f"{STOCK} has no llama-mtmd-cli and llama-server: `make programs` builds them (5 minutes)",
)


def our_libraries(folder: Path) -> Path:
    """The folder that docs/programs.md makes: our libraries under the names that a stock build looks for."""
    on_linux, on_macos = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    pyfastv_command = f'pyfastv() {{ "{sys.executable}" -m pyfastv "$@"; }}\n'
    script = pyfastv_command + (on_macos if sys.platform == "darwin" else on_linux)
    env = os.environ | {"PYTHONPATH": str(Path(pyfastv.__file__).parents[1])}
    subprocess.run(["sh", "-euc", script], cwd=folder, env=env, check=True)
    return folder / "fastv-lib"


def environment(libraries: Path, setting: str | None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}
    kept["DYLD_LIBRARY_PATH" if sys.platform == "darwin" else "LD_LIBRARY_PATH"] = str(libraries)
    return kept if setting is None else kept | {"LLAMA_FASTV": setting}


def common_options(files: tuple[Path, Path] | None = None) -> list[str]:
    model, mmproj = files or (bundled_model(), bundled_mmproj())
    # one thread: in a model this small more of them mostly wait for each other
    return ["--model", str(model), "--mmproj", str(mmproj), "--threads", "1"]


class Question(NamedTuple):
    """About a bundled picture."""

    picture: str
    text: str

    @property
    def path(self) -> Path:
        return bundled_model().parent / f"{self.picture}.png"


class Server:
    """A running llama-server."""

    def __init__(self, url: str, setting: str | None) -> None:
        self.url = url
        self.setting = setting

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=600) as response:
            return json.load(response)

    @property
    def marker(self) -> str:
        """What stands for a picture in a prompt."""
        with urllib.request.urlopen(f"{self.url}/props", timeout=60) as response:
            return json.load(response)["media_marker"]

    def complete(self, messages: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        body = {"messages": messages, "temperature": 0, "max_tokens": MAX_TOKENS, **options}
        return self.post("/v1/chat/completions", body)

    def ask(self, question: Question) -> str:
        return text_of(self.complete([user(question)]))


def user(question: Question) -> dict[str, Any]:
    """A message with the picture. As llama-mtmd-cli, the server leaves the line end behind a picture to the user."""
    uri = f"data:image/png;base64,{base64.b64encode(question.path.read_bytes()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": f"\n{question.text}"}]
    return {"role": "user", "content": parts}


def text_of(completion: dict[str, Any], choice: int = 0) -> str:
    return completion["choices"][choice]["message"]["content"].strip()


@contextmanager
def serve(
    log: Path, libraries: Path, setting: str | None, *options: str, files: tuple[Path, Path] | None = None
) -> Iterator[Server]:
    """llama-server on a free port, until the end of the block; its log is in `log`. Files: model and mmproj."""
    command = [str(SERVER), *common_options(files), "--host", "127.0.0.1", "--port", "0", *options]
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=environment(libraries, setting), stdout=file, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 300
        while (listening := re.search(r"listening on (http://\S+)", log.read_text())) is None:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield Server(listening[1], setting)
    finally:
        process.terminate()
        process.wait(60)
