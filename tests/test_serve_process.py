"""A server as a process: clients that leave, queues that are full, numbers for Prometheus, and the end."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")

from serving import CHAT, Server, question, send, serving


def endless(**fields: Any) -> dict[str, Any]:
    """A request whose answer takes a while: it may not end before it has 400 items."""
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 400}
    form = {"type": "json_schema", "json_schema": {"name": "many", "schema": schema}}
    return {"messages": [question("Go on.")], "temperature": 0, "response_format": form, **fields}


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def health(server: Server) -> dict[str, Any]:
    return json.loads(server.request("GET", "/health")[2])


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(server: Server, stream: bool) -> None:
    before = server.metrics()["pyfastv_cancelled_total"]
    connection = send(server, endless(stream=stream))
    wait_for(lambda: health(server)["active"] == 1)
    if stream:
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    connection.close()
    wait_for(lambda: health(server)["active"] == 0, 5.0)
    wait_for(lambda: server.metrics()["pyfastv_cancelled_total"] == before + 1, 5.0)


def test_a_client_that_leaves_the_queue_is_never_computed(server: Server) -> None:
    slots = health(server)["slots"]
    active = [send(server, endless()) for _ in range(slots)]
    wait_for(lambda: health(server)["active"] + health(server)["waiting"] == slots)
    waiting = send(server, endless())
    wait_for(lambda: health(server)["waiting"] >= 1)
    waiting.close()
    for connection in active:
        connection.close()
    wait_for(lambda: health(server)["active"] + health(server)["waiting"] == 0)


def test_half_a_request_does_no_harm(server: Server) -> None:
    parts = urlsplit(server.url)
    for data in (
        b"POST",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
        b"\x16\x03\x01\x02",
    ):
        with socket.create_connection((parts.hostname, parts.port)) as connection:
            connection.sendall(data)
    assert server.request("POST", "/v1/completions", {"prompt": "Hello", "max_tokens": 1})[0] == 200


def test_a_body_without_end_is_cut(server: Server) -> None:
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=30)
    chunks = (b"x" * 2**20 for _ in range(12))
    connection.request("POST", CHAT, chunks, {"Content-Type": "application/json"}, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_prometheus_reads_what_was_done(server: Server) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    before = server.metrics()
    server.request("POST", "/v1/completions", {"prompt": "Hello", "max_tokens": 3, "temperature": 0})
    server.request("GET", "/v1/secret/path")
    status, headers, data = server.request("GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert list(text_string_to_metric_families(data.decode()))
    after = server.metrics()
    for name, more in {
        "pyfastv_requests_total": 1,
        "pyfastv_finished_total": 1,
        "pyfastv_generated_tokens_total": 3,
        "pyfastv_time_to_first_token_seconds_count": 1,
        'pyfastv_http_responses_total{path="/v1/completions",status="200"}': 1,
    }.items():
        assert after[name] == before.get(name, 0) + more
    assert b"secret" not in data


def test_health_tells_slots_and_queue(server: Server) -> None:
    assert health(server) == {**health(server), "status": "ok", "active": 0, "waiting": 0}


def test_openapi_names_every_address(server: Server) -> None:
    schema = json.loads(server.request("GET", "/openapi.json")[2])
    assert set(schema["paths"]) == {
        "/v1/models",
        "/v1/models/{name}",
        "/v1/chat/completions",
        "/v1/completions",
        "/health",
        "/metrics",
        "/props",
        "/slots",
        "/tokenize",
        "/detokenize",
        "/apply-template",
        "/completion",
        "/v1/responses",
        "/v1/responses/input_tokens",
        "/v1/messages",
        "/v1/messages/count_tokens",
        *(f"/api/{name}" for name in ("chat", "generate", "tags", "show", "ps", "version")),
    }


def test_beyond_the_queue_requests_are_refused_and_may_come_again() -> None:
    with serving("--n-ctx", "2048", "--slots", "1", "--queue", "1") as server:
        connections = [send(server, endless(stream=True)) for _ in range(2)]
        wait_for(lambda: health(server)["active"] + health(server)["waiting"] == 2)
        status, headers, data = server.request("POST", CHAT, endless())
        assert status == 429
        assert int(headers["retry-after"]) >= 1
        assert json.loads(data)["error"]["code"] == "rate_limit_exceeded"
        for connection in connections:
            connection.close()
        wait_for(lambda: health(server)["active"] == 0)
        body = {"prompt": "Hello", "max_tokens": 1}
        assert server.request("POST", "/v1/completions", body)[0] == 200

        # the end, on Ctrl-C, with nobody there
        assert server.stop(signal.SIGINT) == 0
        assert server.stderr() == ""


def test_sigterm_ends_answers_within_seconds() -> None:
    with serving("--n-ctx", "2048", "--slots", "1") as server:
        whole, waiting = send(server, endless()), send(server, endless())
        streamed = send(server, endless(stream=True))
        wait_for(lambda: health(server)["active"] == 1)
        begin = time.monotonic()
        ended: list[int] = []
        thread = threading.Thread(target=lambda: ended.append(server.stop(signal.SIGTERM)))
        thread.start()
        answers = [_read_all(connection) for connection in (whole, waiting, streamed)]
        thread.join()
        assert ended == [0]
        assert time.monotonic() - begin < 10.0
        assert all(b"HTTP/1.1 200" in data or b"HTTP/1.1 503" in data for data in answers)
        assert server.stderr() == ""


def test_a_conversation_of_many_short_messages_is_answered() -> None:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": "ab"[i % 2]} for i in range(521)]
    with serving("--n-ctx", "8192", "--slots", "1") as server:
        assert server.chat(messages, max_tokens=1)["usage"]["prompt_tokens"] > 521


def test_a_port_in_use_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(AssertionError, match=f"cannot listen at 127.0.0.1:{port}"),
            serving("--port", str(port)),
        ):
            pass


def _read_all(connection: socket.socket) -> bytes:
    data = b""
    while piece := connection.recv(65536):
        data += piece
    connection.close()
    return data


STOPPED_EARLY = """
import os, pkgutil, signal, sys
from pyfastv.commands.main import main
owner, _, name = os.environ["AT"].rpartition(".")
owner = pkgutil.resolve_name(owner)
call = getattr(owner, name)
def stopped(*args, **options):
    os.kill(os.getpid(), signal.Signals[os.environ["SIGNAL"]])
    return call(*args, **options)
setattr(owner, name, stopped)
sys.exit(main(["serve", "--port", "0", "--n-ctx", "1024", "--threads", "1"]))
"""
LOADS, IS_TOLD, LISTENS = (
    "pyfastv.engine.job_pool.JobPool.__init__",
    "pyfastv.serve.server.run",
    "uvicorn.Server.run",
)


@pytest.mark.parametrize(
    ("sign", "at"),
    [("SIGTERM", LOADS), ("SIGINT", IS_TOLD), ("SIGTERM", LISTENS)],
)
def test_a_signal_before_the_first_request_ends_the_server_well(sign: str, at: str) -> None:
    command = [sys.executable, "-c", STOPPED_EARLY]
    env = os.environ | {"SIGNAL": sign, "AT": at}
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=60, cwd=tempfile.gettempdir()
    )
    assert done.returncode == 0, done.stderr
    assert ("http://127.0.0.1" in done.stdout) == (at != LOADS)
