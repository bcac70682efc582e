"""Requests that nobody should send: each is refused with a reason, and the next honest one is answered."""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from typing import Any

import pytest

from serving import CLOCK, Server, data_uri, question

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def chat(content: Any = "Hello", **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 1, **fields}


def shown(url: Any) -> dict[str, Any]:
    return chat([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}])


def nested(depth: int, around: str = "[]") -> str:
    return f'{{"messages": {around[0] * depth}{around[1] * depth}}}'


def png(width: int, height: int, data: bytes) -> bytes:
    """A PNG file of 8-bit gray that says this size, whatever its data are."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bomb() -> bytes:
    """20,000 x 20,000 pixels in 390 KB."""
    squeeze = zlib.compressobj(9)
    row = bytes(20_001)
    return png(20_000, 20_000, b"".join(squeeze.compress(row) for _ in range(20_000)) + squeeze.flush())


def gif_of_lies() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("P", (8, 8)).save(file, "GIF")
    return file.getvalue()[:6] + b"\xff\xff\xff\xff" + file.getvalue()[10:]


CLOCK_BYTES = CLOCK.picture.read_bytes()
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'

BODIES = {
    # what: path, body, status, part of the message
    "nothing": (CHAT, b"", 400, "no body"),
    "broken JSON": (CHAT, b'{"messages": [', 400, "not JSON"),
    "two values": (CHAT, b"{} {}", 400, "not JSON"),
    "a string": (CHAT, b'"hello"', 400, "object"),
    "a list": (CHAT, b"[]", 400, "object"),
    "null": (CHAT, b"null", 400, "body"),
    "not UTF-8": (CHAT, b'{"messages": "\xff\xfe"}', 400, "UTF-8"),
    "NUL bytes": (CHAT, bytes(100), 400, "JSON"),
    "deep lists": (CHAT, nested(90_000), 400, "nested"),
    "deep lists, a few": (CHAT, nested(60), 400, "nested"),
    "deep objects": (CHAT, '{"a":' * 20_000 + "1" + "}" * 20_000, 400, "nested"),
    "many small lists": (CHAT, '{"messages": [' + "[]," * 500_000 + "[]]}", 413, "brackets and commas"),
    "5 MB": (CHAT, json.dumps(chat("x" * 5_000_000)), 413, "larger than"),
    "huge integer": (CHAT, '{"messages": [], "seed": ' + "9" * 10_000 + "}", 400, "JSON"),
    "NaN temperature": (CHAT, '{"messages": [], "temperature": NaN}', 400, "NaN"),
    "infinite temperature": (CHAT, '{"messages": [], "temperature": -Infinity}', 400, "finite"),
    "overflowing temperature": (
        CHAT,
        json.dumps(chat())[:-1] + ', "temperature": 1e999}',
        400,
        "temperature",
    ),
    "no messages": (CHAT, "{}", 400, "messages"),
    "empty messages": (CHAT, {"messages": []}, 400, "messages"),
    "messages of numbers": (CHAT, {"messages": [1, 2]}, 400, "messages.0"),
    "unknown role": (CHAT, {"messages": [{"role": "root", "content": "x"}]}, 400, "role"),
    "content a number": (CHAT, chat(5), 400, "content"),
    "unknown part": (CHAT, chat([{"type": "input_audio", "input_audio": {}}]), 400, "input_audio"),
    "part without text": (CHAT, chat([{"type": "text"}]), 400, "text"),
    "10,000 parts": (CHAT, chat([{"type": "text", "text": "x"}] * 10_000), 400, "n_ctx"),
    "10,000 messages": (CHAT, {"messages": [{"role": "user", "content": "x"}] * 10_000}, 400, "n_ctx"),
    "lone surrogate": (CHAT, b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, "surrogate"),
    "a book": (CHAT, chat("word " * 50_000), 400, "n_ctx"),
    "a book without template": (TEXT, {"prompt": "word " * 50_000}, 400, "n_ctx"),
    "no prompt": (TEXT, {"prompt": ""}, 400, "prompt"),
    "prompt of numbers that are no tokens": (TEXT, {"prompt": [1, 2, 10**6]}, 400, "out of range"),
    "prompt of negative numbers": (TEXT, {"prompt": [-1]}, 400, "prompt"),
    "no prompts": (TEXT, {"prompt": []}, 400, "prompt"),
    "an empty prompt among others": (TEXT, {"prompt": ["a", ""]}, 400, "prompt"),
    "more prompts than places": (TEXT, {"prompt": ["a"] * 37}, 400, "room for 36"),
    "more answers than places": (CHAT, chat(n=37), 400, "room for 36"),
    "no answers": (CHAT, chat(n=0), 400, "n: "),
    "bias of a word": (CHAT, chat(logit_bias={"the": 1}), 400, "logit_bias"),
    "bias of no token": (CHAT, chat(logit_bias={"1000000": 1}), 400, "out of range"),
    "bias without bounds": (CHAT, chat(logit_bias={"5": 1e30}), 400, "logit_bias"),
    "negative max_tokens": (CHAT, chat(max_tokens=-5), 400, "max_tokens"),
    "max_tokens a float": (CHAT, chat(max_tokens=1.5), 400, "max_tokens"),
    "max_tokens true": (CHAT, chat(max_tokens=True), 400, "max_tokens"),
    "temperature a string": (CHAT, chat(temperature="hot"), 400, "temperature"),
    "negative temperature": (CHAT, chat(temperature=-1), 400, "temperature"),
    "top_p of 2": (CHAT, chat(top_p=2), 400, "top_p"),
    "top_k of -2": (CHAT, chat(top_k=-2), 400, "top_k"),
    "seed of 2**80": (CHAT, chat(seed=2**80), 400, "seed"),
    "stream a string": (CHAT, chat(stream="yes"), 400, "stream"),
    "stops of 100 kB": (CHAT, chat(stop=[f"{i:01000}" for i in range(100)]), 400, "stop"),
    "stop of numbers": (CHAT, chat(stop=[1]), 400, "stop"),
    "top_logprobs of 50,000": (CHAT, chat(logprobs=True, top_logprobs=50_000), 400, "top_logprobs"),
    "unknown format": (CHAT, chat(response_format={"type": "xml"}), 400, "response_format"),
    "schema a string": (
        CHAT,
        chat(response_format={"type": "json_schema", "json_schema": {"schema": "x"}}),
        400,
        "schema",
    ),
    "schema of an unknown type": (
        CHAT,
        chat(
            response_format={
                "type": "json_schema",
                "json_schema": {"schema": {"type": "object", "properties": {"a": {"type": "soup"}}}},
            }
        ),
        400,
        "soup",
    ),
    "unknown schedule": (CHAT, chat(fastv="k=banana"), 400, "banana"),
    "schedule behind the model": (CHAT, chat(fastv="k=99,drop=0.5"), 400, "99"),
    "schedule that drops 150%": (CHAT, chat(fastv={"k": 2, "drop": 1.5}), 400, "drop"),
    "turbo of 700%": (CHAT, chat(turbo="share=7"), 400, "share"),
    "turbo a number": (CHAT, chat(turbo=0.5), 400, "turbo"),
    "turbo in empty text": (CHAT, chat(turbo=""), 400, "turbo"),
    "unknown reducer": (CHAT, chat(reduce="banana,keep=3"), 400, "banana"),
    "reducer that keeps nothing": (CHAT, chat(reduce="stride,keep=0"), 400, "keep"),
    "reducer an object": (CHAT, chat(reduce={"keep": 3}), 400, "reduce"),
    "schedule a list": (CHAT, chat(fastv=[1]), 400, "fastv"),
    "url a number": (CHAT, shown(5), 400, "url"),
    "url empty": (CHAT, shown(""), 400, "url"),
    "url without data": (CHAT, shown("data:image/png;base64"), 400, "no data"),
    "url of no bytes": (CHAT, shown("data:image/png;base64,"), 400, "empty"),
    "url of no base64": (CHAT, shown("data:image/png;base64,@@@@"), 400, "base64"),
    "picture of text": (CHAT, shown("data:image/png,hello"), 400, "not a picture"),
    "picture truncated": (CHAT, shown(data_uri(CLOCK_BYTES[:2000])), 400, "truncated|damaged"),
    "picture of a header": (CHAT, shown(data_uri(CLOCK_BYTES[:40])), 400, "picture"),
    "picture with wrong data": (CHAT, shown(data_uri(png(100, 100, b"nothing"))), 400, "damaged"),
    "picture of no pixels": (CHAT, shown(data_uri(png(0, 0, b""))), 400, "damaged|pixels|picture"),
    "lying PNG": (CHAT, shown(data_uri(png(2**31 - 1, 2**31 - 1, b""))), 400, "pixels"),
    "lying GIF": (CHAT, shown(data_uri(gif_of_lies())), 400, "pixels"),
    "PNG bomb": (CHAT, shown(data_uri(bomb())), 400, "pixels, the limit is"),
    "SVG": (CHAT, shown(data_uri(SVG, "image/svg+xml")), 400, "SVG"),
    "PostScript": (CHAT, shown(data_uri(b"%!PS-Adobe-3.0 EPSF-3.0\n")), 400, "PostScript"),
    "PDF": (CHAT, shown(data_uri(b"%PDF-1.7\n")), 400, "PDF"),
    "a model": (CHAT, shown(data_uri(b"GGUF" + bytes(100))), 400, "GGUF"),
    "3 pictures": (CHAT, {"messages": [question("?", *[data_uri(CLOCK_BYTES)] * 3)]}, 400, "limit is 2"),
    "path for a url": (CHAT, shown("/etc/passwd"), 400, "data URI"),
    "javascript url": (CHAT, shown("javascript:alert(1)"), 400, "data URI"),
    "ftp url": (CHAT, shown("ftp://example.com/a.png"), 400, "data URI"),
}


@pytest.mark.parametrize("name", BODIES)
def test_bad_bodies_are_refused_with_a_reason(server: Server, name: str) -> None:
    path, body, status, message = BODIES[name]
    _check_refused(server, *server.request("POST", path, body), status=status, message=message)


@pytest.mark.parametrize(
    "broken",
    ["data:image/png;base64,@@@@", "data:image/png,hello", data_uri(CLOCK_BYTES[:2000])],
    ids=["no base64", "no picture", "half a picture"],
)
def test_a_picture_that_cannot_be_read_is_named_by_its_place(server: Server, broken: str) -> None:
    """Whether that is found when its address is read, or when it is decoded."""
    for urls in ([broken], [data_uri(CLOCK_BYTES), broken]):
        body = {"messages": [{"role": "system", "content": "Be brief."}, question("?", *urls)]}
        status, _, data = server.request("POST", CHAT, body)
        error = json.loads(data)["error"]
        place = f"messages.1.content.{len(urls) - 1}"
        assert (status, error["param"], error["code"]) == (400, place, "invalid_image")
        assert error["message"].startswith(f"{place}: ")


HOSTS = [
    *("127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "0.0.0.0", "localhost"),
    *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]"),
    *(
        "169.254.169.254",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
    ),
    *("[fe80::1]", "[fe80::1%25lo]", "[fc00::1]", "[ff02::1]", "198.18.0.1", "240.0.0.1", "192.0.2.1"),
]


@pytest.mark.parametrize("host", HOSTS)
def test_addresses_that_are_not_public_are_not_fetched(server: Server, host: str) -> None:
    answer = server.request("POST", CHAT, shown(f"http://{host}:1/a.png"))
    _check_refused(server, *answer, status=400, message="not fetched|cannot be found|not a URL")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://user:secret@example.com/", "password"),
        ("http://example.com@127.0.0.1/", "password"),
        ("http:///a.png", "no host"),
        ("https://", "no host"),
        ("http://[::1", "not a URL"),
        ("http://example.com:99999/", "not a URL"),
        ("http://127.0.0.1#@example.com/", "not fetched"),
        ("http://127.0.0.1\\@example.com/", "not fetched|cannot be found|not a URL|password"),
        ("http://exa\r\nmple.com/", "not fetched|cannot be found|fetched"),
        ("http://.", "cannot be found|fetched"),
        ("http://" + "a" * 300 + ".com/", "cannot be found|fetched"),
        ("http://\u2460\u2461\u2466.0.0.1/", "not fetched|cannot be found|not a URL"),
    ],
)
def test_odd_urls_are_not_fetched(server: Server, url: str, message: str) -> None:
    _check_refused(server, *server.request("POST", CHAT, shown(url)), status=400, message=message)


@pytest.mark.parametrize(
    "path",
    [
        *("{folder}/../secret.png", "{folder}/link.png", "{folder}", "{folder}/", "{folder}/none.png"),
        *("{folder}/%2e%2e/secret.png", "{folder}/..%2fsecret.png", "{folder}/clock.png%00.jpg"),
        *(
            "{folder}/clock.png/../../secret.png",
            "/etc/passwd",
            "/dev/zero",
            "//evil/etc/passwd",
            "clock.png",
        ),
    ],
)
def test_files_outside_of_the_folder_are_not_read(server: Server, path: str) -> None:
    url = "file://" + path.format(folder=server.folder)
    _check_refused(
        server, *server.request("POST", CHAT, shown(url)), status=400, message="no such file in the folder"
    )


def test_a_file_of_the_folder_is_read(server: Server) -> None:
    answer = server.chat([question(CLOCK.question, f"file://{server.folder}/clock.png")])
    assert answer["choices"][0]["message"]["content"] == CLOCK.answer


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/v1/nothing", {}, 404),
        ("GET", "/../../etc/passwd", {}, 404),
        ("GET", CHAT, {}, 405),
        ("DELETE", "/v1/models", {}, 405),
        ("PUT", CHAT, {}, 405),
        ("POST", CHAT, {"Content-Type": "text/plain"}, 415),
        ("POST", CHAT, {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ("POST", CHAT, {"Content-Encoding": "gzip"}, 415),
        ("POST", CHAT, {"Host": "evil.example"}, 421),
        ("GET", "/v1/models", {"Host": "evil.example"}, 421),
        ("GET", "/", {"Host": "127.0.0.1.evil.example:80"}, 421),
    ],
)
def test_bad_requests_are_refused_in_openais_form(
    server: Server, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    body = json.dumps(chat()) if method in ("POST", "PUT") else None
    _check_refused(server, *server.request(method, path, body, headers), status=status, message=".")


def _check_refused(
    server: Server, got: int, headers: dict[str, str], data: bytes, *, status: int, message: str
) -> None:
    assert got == status, data
    error = json.loads(data)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) < 1100

    assert re.search(message, error["message"]), error
    assert headers["content-type"] == "application/json"
    honest = server.request("POST", TEXT, {"prompt": "Hello", "max_tokens": 1})
    assert honest[0] == 200, honest[2]
