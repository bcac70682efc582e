"""Streams while there is no answer yet: what is sent at once, what keeps a connection alive, how far a prompt is read."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")

from serving import CLOCK, Server, data_uri, question, send, serving
from test_serve_process import endless, health, wait_for

PICTURE = [question(CLOCK.question, data_uri(CLOCK.picture))]


@pytest.fixture(scope="module")
def pinging() -> Iterator[Server]:
    """Of one slot."""
    with serving("--n-ctx", "1024", "--slots", "1", "--sse-ping-interval", "0.1") as server:
        yield server


@pytest.fixture
def busy(pinging: Server) -> Iterator[socket.socket]:
    """A request that has the slot."""
    connection = send(pinging, endless(stream=True))
    wait_for(lambda: health(pinging)["active"] == 1)
    yield connection
    connection.close()
    wait_for(lambda: health(pinging)["active"] == health(pinging)["waiting"] == 0)


def read_until(connection: socket.socket, words: bytes, times: int = 1) -> bytes:
    data = b""
    while data.count(words) < times:
        piece = connection.recv(65536)
        assert piece, data
        data += piece
    return data


def events(data: bytes) -> list[dict[str, Any]]:
    lines = data.decode().split("\n")
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def test_headers_and_the_role_come_before_there_is_a_slot(pinging: Server, busy: socket.socket) -> None:
    with send(pinging, {"messages": PICTURE, "stream": True}) as connection:
        data = read_until(connection, b'"role":"assistant"')
        assert data.startswith(b"HTTP/1.1 200")
        assert b"text/event-stream" in data
        assert health(pinging)["waiting"] == 1


HELLO = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("path", "body", "words", "ping"),
    [
        ("/v1/responses", {"input": "Hello"}, b"event: response.in_progress", b": ping\n\n"),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 5}, b"event: message_start", b"event: ping\n"),
    ],
)
def test_streams_of_other_protocols_begin_and_ping_before_there_is_a_slot(
    pinging: Server, busy: socket.socket, path: str, body: dict[str, Any], words: bytes, ping: bytes
) -> None:
    with send(pinging, {**body, "stream": True}, path) as connection:
        data = read_until(connection, words)
        assert data.startswith(b"HTTP/1.1 200")
        assert health(pinging)["waiting"] == 1
        read_until(connection, ping, 2)


def test_comments_come_while_nothing_is_sent(pinging: Server, busy: socket.socket) -> None:
    begin = time.monotonic()
    body = {"messages": PICTURE, "stream": True, "return_progress": True, "temperature": 0}
    with send(pinging, body) as connection:
        data = read_until(connection, b": ping\n\n", 3)
        assert 0.3 <= time.monotonic() - begin < 5.0
        busy.close()
        data += read_until(connection, b"[DONE]")
    chunks = events(data)
    text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
    assert text == CLOCK.answer


def test_a_client_that_leaves_the_queue_of_its_stream_is_not_computed(
    pinging: Server, busy: socket.socket
) -> None:
    with send(pinging, {"messages": PICTURE, "stream": True}) as connection:
        read_until(connection, b'"role":"assistant"')
        wait_for(lambda: health(pinging)["waiting"] == 1)
    wait_for(lambda: health(pinging)["waiting"] == 0, 5.0)


def test_a_client_that_leaves_the_queue_is_known_to_have_left_before_a_comment_is_due(server: Server) -> None:
    """After 10 s; nothing else is sent to a stream that waits."""
    slots = health(server)["slots"]
    active = [send(server, endless(stream=True)) for _ in range(slots)]
    wait_for(lambda: health(server)["active"] == slots)
    with send(server, {"messages": PICTURE, "stream": True}) as connection:
        read_until(connection, b'"role":"assistant"')
        wait_for(lambda: health(server)["waiting"] == 1)
    wait_for(lambda: health(server)["waiting"] == 0, 5.0)
    for connection in active:
        connection.close()
    wait_for(lambda: health(server)["active"] == 0)


def test_what_goes_wrong_before_the_queue_has_a_status(pinging: Server) -> None:
    for body, words in (
        ({"messages": [question("word " * 2000)]}, b"context_length_exceeded"),
        ({"messages": PICTURE, "fastv": "k=99,drop=0.5"}, b"invalid_value"),
    ):
        with send(pinging, {**body, "stream": True, "temperature": 0}) as connection:
            data = read_until(connection, words)
        assert data.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("wanted", [True, False])
def test_the_progress_of_a_prompt_is_told_on_request(pinging: Server, wanted: bool) -> None:
    body = {
        "messages": [question(f"What is it, {wanted}?", data_uri(CLOCK.picture))],
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": wanted,
        "max_tokens": 1,
    }
    with send(pinging, body) as connection:
        chunks = events(read_until(connection, b"[DONE]"))
    told = [chunk["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk]
    assert bool(told) == wanted
    usage = chunks[-1]["usage"]
    assert all(progress["total"] == usage["prompt_tokens"] for progress in told)
    done = [progress["processed"] for progress in told]
    assert done == sorted(set(done))
    for progress in told:
        assert progress["cache"] == usage["prompt_tokens_details"]["cached_tokens"]
        assert progress["cache"] <= progress["processed"] <= progress["total"]
        assert progress["time_ms"] >= 0
    # clients that do not know it see a chunk without text
    assert all(chunk["choices"][0]["delta"] == {} for chunk in chunks if "prompt_progress" in chunk)
