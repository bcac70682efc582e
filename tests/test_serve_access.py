"""Who may use a server: its key, its origins, its address; and what its owner is told."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")

from pyfastv.commands.main import main
from pyfastv.serve.guard import is_loopback

from serving import CLOCK, Server, data_uri, question, serving

KEY = "a secret \u00fc"


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    with serving(
        *("--n-ctx", "1024", "--cors-origin", "https://app.example", "--host", "0.0.0.0"),
        env={"PYFASTV_API_KEY": KEY},
    ) as server:
        server.url = server.url.replace("0.0.0.0", "127.0.0.1")
        yield server


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}".encode().decode("latin-1")}


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/openapi.json", "/v1/nothing"])
@pytest.mark.parametrize("key", [None, "", "another", KEY[:-1], KEY + "x"])
def test_a_wrong_key_is_refused(guarded: Server, path: str, key: str | None) -> None:
    status, headers, data = guarded.request("GET", path, headers={} if key is None else bearer(key))
    assert status == 401
    assert headers["www-authenticate"] == "Bearer"
    assert json.loads(data)["error"]["code"] == "invalid_api_key"


def test_the_right_key_is_taken(guarded: Server) -> None:
    assert guarded.request("GET", "/v1/models", headers=bearer(KEY))[0] == 200
    body = {"prompt": "Hello", "max_tokens": 1}
    assert guarded.request("POST", "/v1/completions", body)[0] == 401
    assert guarded.request("POST", "/v1/completions", body, bearer(KEY))[0] == 200


def test_a_key_in_anthropics_header_is_taken_and_errors_have_its_form(guarded: Server) -> None:
    body = {"messages": [question("Hello")], "max_tokens": 1}
    key = KEY.encode().decode("latin-1")
    for path in ("/v1/messages", "/v1/completions"):
        sent = body if "messages" in path else {"prompt": "Hello", "max_tokens": 1}
        assert guarded.request("POST", path, sent, {"X-Api-Key": key})[0] == 200
        assert guarded.request("POST", path, sent, {"X-Api-Key": f"{key}x"})[0] == 401
        assert guarded.request("POST", path, sent, {"X-Api-Key": "", "Authorization": key})[0] == 401
    data = guarded.request("POST", "/messages", body)[2]
    assert json.loads(data)["type"] == "error"
    assert json.loads(data)["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("path", ["/", "/health"])
def test_the_page_and_health_need_no_key(guarded: Server, path: str) -> None:
    assert guarded.request("GET", path)[0] == 200


def test_only_the_given_origin_may_read(guarded: Server) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    good = guarded.request("OPTIONS", "/v1/models", headers={"Origin": "https://app.example", **asked})
    assert good[1]["access-control-allow-origin"] == "https://app.example"
    bad = guarded.request("OPTIONS", "/v1/models", headers={"Origin": "https://evil.example", **asked})
    assert "access-control-allow-origin" not in bad[1]
    refused = guarded.request("GET", "/v1/models", headers={"Origin": "https://app.example"})
    assert refused[0] == 401
    assert refused[1]["access-control-allow-origin"] == "https://app.example"


def test_a_public_address_takes_any_host(guarded: Server) -> None:
    assert guarded.request("GET", "/health", headers={"Host": "my.server.example"})[0] == 200
    assert guarded.stderr() == ""  # it has a key


def test_pictures_from_elsewhere_are_not_taken_by_default(guarded: Server) -> None:
    for url, way in {
        "http://example.com/a.png": "--allow-remote-images",
        "https://example.com/a.png": "--allow-remote-images",
        f"file://{CLOCK.picture}": "--allow-local-files",
    }.items():
        status, _, data = guarded.request(
            "POST", "/v1/chat/completions", {"messages": [question("?", url)]}, bearer(KEY)
        )
        assert status == 400
        assert way in json.loads(data)["error"]["message"]


def test_the_key_is_never_told(guarded: Server) -> None:
    for path in ("/", "/health", "/v1/models", "/metrics", "/openapi.json"):
        data = guarded.request("GET", path, headers=bearer(KEY))[2]
        assert KEY.encode() not in data


def test_a_public_address_without_a_key_is_remarked_upon() -> None:
    with serving("--n-ctx", "1024", "--host", "0.0.0.0", env={"PYFASTV_API_KEY": ""}) as server:
        assert "everyone who reaches 0.0.0.0 can use this server: set --api-key" in server.stderr()


@pytest.mark.parametrize(
    "name", ["localhost", "LOCALHOST.", "app.localhost", "127.0.0.1", "127.9.9.9", "[::1]", "::1"]
)
def test_loopback_names_are_known(name: str) -> None:
    assert is_loopback(name)


@pytest.mark.parametrize(
    "name",
    ["", "localhost.evil.example", "127.0.0.1.evil.example", "0.0.0.0", "10.0.0.1", "[::]", "2130706433"],
)
def test_other_names_are_not(name: str) -> None:
    assert not is_loopback(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "256.1.1.1"], "cannot listen at 256.1.1.1:8080"),
        (["--port", "70000"], "70000"),
        (["--slots", "0"], "slots"),
        (["--api-key", "  "], "not empty"),
        (["--allow-local-files", "/nonexistent/folder"], "/nonexistent/folder"),
        (["--model", "/nonexistent/model.gguf", "--port", "0"], "mmproj"),
        (["--schedule", "k=banana"], "banana"),
    ],
)
def test_wrong_options_are_told_before_anything_is_loaded(
    options: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *options]) in (1, 2)
    assert message in capfd.readouterr().err


def test_a_missing_package_names_the_extra(tmp_path: Path) -> None:
    code = "import sys; sys.modules['uvicorn'] = None; from pyfastv.commands.main import main; sys.exit(main(['serve']))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.returncode == 1
    assert done.stderr == "pyfastv: pyfastv serve needs uvicorn: pip install 'pyfastv[serve]'\n"


def test_the_package_and_its_command_line_need_no_extra(tmp_path: Path) -> None:
    code = "import pyfastv.commands.main, sys; print([m for m in ('fastapi', 'uvicorn', 'pydantic') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.stdout == "[]\n"


def test_a_picture_is_answered_under_a_key(guarded: Server) -> None:
    body = {"messages": [question(CLOCK.question, data_uri(CLOCK.picture))], "temperature": 0}
    status, _, data = guarded.request("POST", "/v1/chat/completions", body, bearer(KEY))
    assert status == 200
    assert json.loads(data)["choices"][0]["message"]["content"] == CLOCK.answer
