"""Servers for tests: ``pyfastv serve`` in a process of its own, on a port of its own."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from pyfastv.models import bundled_examples

EXAMPLES = {example.picture.name: example for example in bundled_examples()}
CLOCK = bundled_examples()[0]
CHAT = "/v1/chat/completions"


@dataclass
class Server:
    """A running server."""

    process: subprocess.Popen[str]
    url: str
    log: IO[str]
    folder: Path | None = None
    """Of --allow-local-files."""

    def request(
        self,
        method: str,
        path: str,
        body: bytes | str | dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        timeout: float = 60.0,
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers with names in lower case, body."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
        data = json.dumps(body) if isinstance(body, dict) else body
        try:
            connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            named = {name.lower(): value for name, value in response.getheaders()}
            return response.status, named, response.read()
        finally:
            connection.close()

    def chat(self, messages: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        """A chat completion, greedy unless told otherwise."""
        body = {"messages": messages, "temperature": 0, **options}
        status, _, data = self.request("POST", CHAT, body)
        assert status == 200, data
        answer: dict[str, Any] = json.loads(data)
        return answer

    def metrics(self) -> dict[str, float]:
        """Prometheus' numbers, by name and labels."""
        text = self.request("GET", "/metrics")[2].decode()
        found = re.findall(r"^(\w+(?:\{.*\})?) ([\d.e+-]+)$", text, re.M)
        return {name: float(value) for name, value in found}

    def stderr(self) -> str:
        """What it has written there so far."""
        self.log.seek(0)
        return self.log.read()

    def stop(self, sign: int = signal.SIGTERM, timeout: float = 15.0) -> int:
        """Its exit status."""
        self.process.send_signal(sign)
        return self.process.wait(timeout)


def send(server: Server, body: dict[str, Any], path: str = CHAT) -> socket.socket:
    """A request, for a chat completion unless told otherwise, whose answer is left to the caller."""
    parts = urlsplit(server.url)
    data = json.dumps(body).encode()
    connection = socket.create_connection((parts.hostname, parts.port), timeout=30)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return connection


@contextmanager
def serving(*options: str, env: dict[str, str] | None = None) -> Iterator[Server]:
    """A server of the bundled model, with these options."""
    command = [sys.executable, "-m", "pyfastv", "serve", "--port", "0", *options]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **(env or {})},
            cwd=tempfile.gettempdir(),  # not the checkout, whose pyfastv may not be built
        )
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+", process.stdout.readline())
            if found is None:
                log.seek(0)
                raise AssertionError(f"the server did not start: {log.read()}")
            yield Server(process, found[0], log)
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def data_uri(picture: Path | bytes, kind: str = "image/png") -> str:
    """A picture as a client sends it."""
    data = picture if isinstance(picture, bytes) else picture.read_bytes()
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def question(text: str, *urls: str) -> dict[str, Any]:
    """A message of the user, its pictures first."""
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}
