"""Fetching pictures from the web: public addresses only, and only so much, so far and so long."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

anyio = pytest.importorskip("anyio", reason="needs the extra serve")
pytest.importorskip("httpcore2", reason="needs the extra serve")

from pyfastv.errors import ImageError  # noqa: E402
from pyfastv.serve import fetch as fetching  # noqa: E402
from pyfastv.serve.settings import Settings  # noqa: E402

SETTINGS = Settings(remote_bytes=10_000, remote_seconds=3.0, remote_redirects=3)
refuse = fetching.refuse_address  # before a test replaces it


def fetch(url: str, settings: Settings = SETTINGS) -> bytes:
    data: bytes = anyio.run(fetching.fetch, url, settings)
    return data


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """A web server that counts as public, and the paths that were asked of it."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            kind, _, rest = self.path[1:].partition("/")
            if kind == "to":
                self.send_response(302)
                self.send_header("Location", rest)
                self.end_headers()
            elif kind == "loop":
                self.send_response(307)
                self.send_header("Location", "/loop")
                self.end_headers()
            elif kind == "drip":
                self.send_response(200)
                self.end_headers()
                with_room = True
                while with_room:
                    try:
                        self.wfile.write(b".")
                        time.sleep(0.05)
                    except OSError:
                        with_room = False
            elif kind == "endless":
                self.send_response(200)
                self.end_headers()
                try:
                    for _ in range(100):
                        self.wfile.write(bytes(1000))
                except OSError:
                    pass
            elif kind == "large":
                self.send_response(200)
                self.send_header("Content-Length", "99999999999")
                self.end_headers()
            elif kind == "missing":
                self.send_error(404)
            else:
                self.send_response(200)
                self.send_header("Content-Length", "7")
                self.end_headers()
                self.wfile.write(b"picture")

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setattr(
            fetching, "refuse_address", lambda address: None if address == "127.0.0.1" else refuse(address)
        )
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_a_picture_is_fetched(web: tuple[str, list[str]]) -> None:
    assert fetch(f"{web[0]}/a%20b.png?x=1#top") == b"picture"
    assert web[1] == ["/a%20b.png?x=1"]


def test_redirects_are_followed_so_far(web: tuple[str, list[str]]) -> None:
    assert fetch(f"{web[0]}/to/{web[0]}/to//a.png") == b"picture"
    with pytest.raises(ImageError, match="more than 3 redirects"):
        fetch(f"{web[0]}/loop")
    assert web[1].count("/loop") == 4


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("http://127.0.0.2:1/", "is loopback"),
        ("http://169.254.169.254/latest/meta-data", "is link-local"),
        ("http://[::ffff:10.0.0.1]/", "is private"),
        ("http://2130706434/", "is loopback"),
        ("file:///etc/passwd", "leads to 'file'"),
        ("gopher://127.0.0.1/", "leads to 'gopher'"),
        ("http://a:b@127.0.0.1/", "password"),
        ("", "redirects"),
    ],
)
def test_a_redirect_is_checked_as_the_first_address_is(
    web: tuple[str, list[str]], target: str, message: str
) -> None:
    with pytest.raises(ImageError, match=message):
        fetch(f"{web[0]}/to/{target}")


def test_size_and_time_are_limited(web: tuple[str, list[str]]) -> None:
    with pytest.raises(ImageError, match="larger than 10,000 bytes"):
        fetch(f"{web[0]}/large")
    with pytest.raises(ImageError, match="larger than 10,000 bytes"):
        fetch(f"{web[0]}/endless")
    begin = time.monotonic()
    with pytest.raises(ImageError, match="took longer than"):
        fetch(f"{web[0]}/drip", replace(SETTINGS, remote_seconds=0.4))
    assert time.monotonic() - begin < 2.0


def test_only_success_is_a_picture(web: tuple[str, list[str]]) -> None:
    with pytest.raises(ImageError, match="answered 404"):
        fetch(f"{web[0]}/missing")


def resolver(*answers: list[str]) -> Callable[..., Any]:
    """Answers each look-up with the next list of addresses."""
    left = list(answers)

    async def getaddrinfo(host: Any, port: Any, **_: Any) -> list[Any]:
        found = left.pop(0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    return getaddrinfo


def test_the_connection_goes_to_the_address_that_was_checked(
    web: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = web[0].rpartition(":")[2]
    # a second look-up would find another address
    monkeypatch.setattr(fetching.anyio, "getaddrinfo", resolver(["127.0.0.1"], ["10.0.0.1"]))
    assert fetch(f"http://rebinding.example:{port}/a.png") == b"picture"


def test_one_private_address_among_several_refuses_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching.anyio, "getaddrinfo", resolver(["8.8.8.8", "192.168.0.1"]))
    with pytest.raises(ImageError, match=r"192\.168\.0\.1, which is private"):
        fetch("http://both.example/")


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are_not_refused(address: str) -> None:
    assert refuse(address) is None


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.8.8.8", "loopback"),
        ("::1", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("::", "unspecified"),
        ("169.254.1.1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("10.1.1.1", "private"),
        ("fd00::1", "private"),
        ("fec0::1", "private"),
        ("100.64.0.1", "not public"),
        ("239.1.1.1", "multicast"),
        ("ff02::1", "multicast"),
        ("::ffff:192.168.0.1", "private"),
        ("64:ff9b::a00:1", "private"),
        ("2002:7f00:1::", "loopback"),
        ("2001:0:4136:e378:8000:63bf:80ff:fffe", "loopback"),  # Teredo, of 127.0.0.1
        ("255.255.255.255", "private"),
    ],
)
def test_other_addresses_are_refused_with_a_reason(address: str, reason: str) -> None:
    assert reason in str(refuse(address))
