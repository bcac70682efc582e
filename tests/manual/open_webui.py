"""Asks the bundled model about a picture through Open WebUI: its own process, its own HTTP API, our server behind it, by
OpenAI's API and by Ollama's.

Not part of the tests: Open WebUI is a gigabyte, in an environment of its own (Python 3.11 or 3.12).

    python3.11 -m venv open-webui && open-webui/bin/pip install open-webui
    python tests/manual/open_webui.py open-webui/bin/open-webui [--api openai] [--api ollama]

Exits with 0 if every answer was right. Nothing is asked of the network.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from pyfastv.commands.demo import same_answer
from pyfastv.models import bundled_examples

from clients import serving

PICTURE, QUESTION, ANSWER = bundled_examples()[0]
START_S = 300.0


class OpenWebUI:
    """A running Open WebUI, asked as its page asks it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.token = ""

    def call(self, path: str, body: object = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(self.url + path, data, headers)
        with urllib.request.urlopen(request, timeout=300) as response:
            answer: bytes = response.read()
        return answer

    def wait(self, process: subprocess.Popen[bytes], log: Path) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                self.call("/health")
                return
            except (urllib.error.URLError, ConnectionError):
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"Open WebUI did not start:\n{log.read_text()[-3000:]}")
                time.sleep(1)

    def sign_in(self) -> None:
        """Without authentication, this gives the token of the only user."""
        self.token = json.loads(self.call("/api/v1/auths/signin", {"email": "", "password": ""}))["token"]

    def models(self) -> list[str]:
        return [model["id"] for model in json.loads(self.call("/api/models"))["data"]]

    def chat(self, model: str, messages: list[dict[str, Any]], stream: bool) -> str:
        body = {"model": model, "messages": messages, "stream": stream, "temperature": 0, "max_tokens": 64}
        answer = self.call("/api/chat/completions", body).decode()
        if not stream:
            return str(json.loads(answer)["choices"][0]["message"]["content"])
        events = [json.loads(data) for data in re.findall(r"^data: (\{.*\})$", answer, re.M)]
        deltas = [event["choices"][0]["delta"] for event in events if event.get("choices")]
        return "".join(delta.get("content") or "" for delta in deltas)


APIS = ("openai", "ollama")


def settings(server: str, folder: str, api: str) -> dict[str, str]:
    """No login, no network, our server as the only source of models, by one API."""
    by_ollama = api == "ollama"
    return {
        "DATA_DIR": folder,
        "WEBUI_SECRET_KEY": "none",
        "WEBUI_AUTH": "False",
        "OFFLINE_MODE": "True",
        "HF_HUB_OFFLINE": "1",
        "ENABLE_OLLAMA_API": str(by_ollama),
        "OLLAMA_BASE_URL": server,
        "ENABLE_OPENAI_API": str(not by_ollama),
        "OPENAI_API_BASE_URL": f"{server}/v1",
        "OPENAI_API_KEY": "none",
        "RAG_EMBEDDING_ENGINE": "openai",  # the default one is downloaded
        "ANONYMIZED_TELEMETRY": "False",
        "DO_NOT_TRACK": "1",
        "SCARF_NO_ANALYTICS": "true",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check(webui: OpenWebUI) -> bool:
    """Ask whole, as a stream, and once more in the same conversation."""
    webui.sign_in()
    models = webui.models()
    print(f"models: {', '.join(models)}")
    uri = f"data:image/png;base64,{base64.b64encode(PICTURE.read_bytes()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": QUESTION}]
    first: list[dict[str, Any]] = [{"role": "user", "content": parts}]
    right = True
    for stream in (False, True):
        begin = time.monotonic()
        answer = webui.chat(models[0], first, stream).strip()
        ok = same_answer(answer, ANSWER)
        how, verdict = "stream" if stream else "whole", "right" if ok else "WRONG"
        print(f"{how}: {answer!r}, {verdict}, {time.monotonic() - begin:.2f} s")
        right = right and ok
    turns = [
        *first,
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": "Is the clock digital or analog?"},
    ]
    answer = webui.chat(models[0], turns, False).strip()
    print(f"second turn: {answer!r}")
    return right and bool(answer)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("open_webui", type=Path, help="its command")
    parser.add_argument("--api", action="append", choices=APIS, help="can be repeated; without: each in turn")
    arguments = parser.parse_args()
    command = arguments.open_webui.absolute()
    right = [ask_through(command, api) for api in arguments.api or APIS]
    return 0 if all(right) else 1


def ask_through(command: Path, api: str) -> bool:
    """Whether every answer by this API was right."""
    print(f"by {api}:")
    with tempfile.TemporaryDirectory() as folder, serving() as address:
        port = free_port()
        log = Path(folder) / "log"
        with log.open("wb") as file:
            webui_process = subprocess.Popen(
                [command, "serve", "--host", "127.0.0.1", "--port", str(port)],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=os.environ | settings(address, folder, api),
            )
        try:
            webui = OpenWebUI(f"http://127.0.0.1:{port}")
            webui.wait(webui_process, log)
            return check(webui)
        except urllib.error.HTTPError as error:
            print(f"{error.url}: {error.code} {error.read().decode()[:2000]}\n{log.read_text()[-3000:]}")
            return False
        finally:
            webui_process.terminate()
            webui_process.wait(60)


if __name__ == "__main__":
    sys.exit(main())
