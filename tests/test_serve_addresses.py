"""Where and how clients ask: spellings of the addresses, names of the host, connections that are half closed."""

from __future__ import annotations

import http.client
import json
import socket
from urllib.parse import urlsplit

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")

from pyfastv.serve.guard import is_address

from serving import CHAT, Server, question

BRIEF = {"messages": [question("Hello")], "max_tokens": 1}


@pytest.mark.parametrize(
    "path",
    [
        *("/chat/completions", "/chat/completions/", "//chat/completions", "/v1//chat/completions"),
        *("/v1/v1/chat/completions", "/v1/chat/completions/"),
    ],
)
def test_chats_are_answered_at_every_spelling_of_the_address(server: Server, path: str) -> None:
    status, _, data = server.request("POST", path, BRIEF)
    assert status == 200, data
    assert json.loads(data)["object"] == "chat.completion"


@pytest.mark.parametrize("path", ["/completions", "/completions/", "/v1//completions"])
def test_texts_go_on_at_every_spelling_of_the_address(server: Server, path: str) -> None:
    status, _, data = server.request("POST", path, {"prompt": "Hello", "max_tokens": 1})
    assert status == 200, data
    assert json.loads(data)["object"] == "text_completion"


@pytest.mark.parametrize("before", ["", "/v1", "/v1/v1", "//v1/"])
def test_other_protocols_are_answered_at_every_spelling_of_their_addresses(
    server: Server, before: str
) -> None:
    for path, body, kind in (
        ("/responses", {"input": "Hello", "max_output_tokens": 1}, '"object":"response"'),
        ("/responses/input_tokens", {"input": "Hello"}, '"object":"response.input_tokens"'),
        ("/messages", {"messages": [question("Hello")], "max_tokens": 1}, '"type":"message"'),
        ("/messages/count_tokens", {"messages": [question("Hello")]}, '"input_tokens":'),
    ):
        status, _, data = server.request("POST", before + path, body)
        assert (status, kind in data.decode()) == (200, True), data


def test_the_model_is_listed_without_v1(server: Server) -> None:
    listed = json.loads(server.request("GET", "/v1/models")[2])
    for path in ("/models", "/models/", "//models", "/v1/models/", "/v1/v1/models"):
        assert json.loads(server.request("GET", path)[2]) == listed
    name = listed["data"][0]["id"]
    assert json.loads(server.request("GET", f"/models/{name}")[2]) == listed["data"][0]


@pytest.mark.parametrize(
    "path", ["/v1/health", "/health/", "/healthz", "/livez", "/readyz", "/readyz/", "/ping"]
)
def test_health_has_the_addresses_that_are_asked_for(server: Server, path: str) -> None:
    status, _, data = server.request("GET", path)
    assert (status, json.loads(data)["status"]) == (200, "ok")


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/metrics", "/"])
def test_head_is_get_without_a_body(server: Server, path: str) -> None:
    status, headers, data = server.request("HEAD", path)
    assert (status, data) == (200, b"")
    assert headers["content-type"] == server.request("GET", path)[1]["content-type"]


def test_a_spelling_opens_nothing_that_needs_a_key_and_counts_as_the_address(server: Server) -> None:
    name = 'pyfastv_http_responses_total{path="/v1/models",status="200"}'
    before = server.metrics().get(name, 0)
    server.request("GET", "//models/")
    assert server.metrics()[name] == before + 1


@pytest.mark.parametrize("host", ["0.0.0.0:8080", "[::]:8080", "192.168.1.7", "10.0.0.1:80", "[fe80::1]:80"])
def test_hosts_in_numbers_are_taken(server: Server, host: str) -> None:
    assert server.request("GET", "/v1/models", headers={"Host": host})[0] == 200


def test_a_request_without_a_host_is_taken(server: Server) -> None:
    """As checks of health by HTTP/1.0 send it."""
    with _connected(server) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert _read(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("name", ["localhost", "1.2.3.4.evil.example", "2130706433", "127.1", ""])
def test_names_are_no_addresses_in_numbers(name: str) -> None:
    assert not is_address(name)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_closes_its_sending_side_gets_its_answer(
    server: Server, stream: bool, version: str
) -> None:
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 30, "maxItems": 30}
    form = {"type": "json_schema", "json_schema": {"name": "many", "schema": schema}}
    body = json.dumps({"messages": [question("Go on.")], "response_format": form, "stream": stream}).encode()
    head = f"POST {CHAT} HTTP/{version}\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with _connected(server) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        connection.shutdown(socket.SHUT_WR)
        # as clients of HTTP do: what is interim is passed over
        response = http.client.HTTPResponse(connection)
        response.begin()
        text = response.read().decode()
    assert response.status == 200
    assert "data: [DONE]" in text if stream else json.loads(text)["choices"][0]["finish_reason"] == "stop"


def _connected(server: Server) -> socket.socket:
    parts = urlsplit(server.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=30)


def _read(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))
