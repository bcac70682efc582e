"""llama-server's addresses beside OpenAI's, the model's name, and the log of requests."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")

from pyfastv import Runner
from pyfastv.models import bundled_model

from serving import CLOCK, Server, data_uri, question, send, serving
from test_serve_process import endless, health, wait_for

FILE = "tiny-llava-Q4_K_M.gguf"


def get(server: Server, path: str) -> Any:
    status, _, data = server.request("GET", path)
    assert status == 200, data
    return json.loads(data)


def post(server: Server, path: str, **body: Any) -> Any:
    status, _, data = server.request("POST", path, body)
    assert status == 200, data
    return json.loads(data)


def test_props_tell_the_context_the_template_and_what_it_sees(server: Server, runner: Runner) -> None:
    props = get(server, "/props")
    assert props["default_generation_settings"]["n_ctx"] == 2048
    assert props["default_generation_settings"]["params"]["temperature"] == 0.8
    assert props["total_slots"] == 4
    assert props["modalities"] == {"vision": True, "audio": False}
    assert props["chat_template"] == (runner._engine.chat_template or "")
    assert (props["model_alias"], props["model_path"]) == (FILE, FILE)
    assert props["chat_template_caps"]["supports_tools"]
    assert props["bos_token"] == runner._engine.bos_token


def test_models_tell_the_context_and_what_they_take(server: Server) -> None:
    (model,) = get(server, "/v1/models")["data"]
    assert model["meta"]["n_ctx"] == 2048
    assert model["architecture"]["input_modalities"] == ["text", "image"]


def test_slots_tell_which_are_at_work(server: Server) -> None:
    assert [slot["is_processing"] for slot in get(server, "/slots")] == [False] * 4
    connection = send(server, endless(stream=True))
    wait_for(lambda: health(server)["active"] == 1)
    slots = get(server, "/slots")
    assert [slot["id"] for slot in slots] == [0, 1, 2, 3]
    assert all(slot["n_ctx"] == 2048 for slot in slots)
    assert sum(slot["is_processing"] for slot in slots) == 1
    connection.close()
    wait_for(lambda: health(server)["active"] == 0)


@pytest.mark.parametrize("text", ["Hello, world", "", "ü ☀ 日本", "line\nbreak"])
def test_tokens_of_a_text_are_those_of_a_prompt(server: Server, text: str) -> None:
    tokens = post(server, "/tokenize", content=text, add_special=True)["tokens"]
    pieces = post(server, "/tokenize", content=text, with_pieces=True)["tokens"]
    spelt = b"".join(
        p["piece"].encode() if isinstance(p["piece"], str) else bytes(p["piece"]) for p in pieces
    )
    assert spelt.decode().strip() == text
    assert post(server, "/detokenize", tokens=[p["id"] for p in pieces])["content"] == spelt.decode()
    if text:
        usage = post(server, "/v1/completions", prompt=text, max_tokens=0)["usage"]
        assert usage["prompt_tokens"] == len(tokens)


def test_special_tokens_are_text_on_request(server: Server) -> None:
    special = post(server, "/tokenize", content="</s>")["tokens"]
    as_text = post(server, "/tokenize", content="</s>", parse_special=False)["tokens"]
    assert len(special) < len(as_text)


def test_the_prompt_of_a_conversation_is_shown(server: Server, runner: Runner) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        question("What is it?", data_uri(CLOCK.picture)),
    ]
    prompt = post(server, "/apply-template", messages=messages)["prompt"]
    assert prompt.count("<__media__>") == 1
    as_system = [{"role": "system", "content": "Be brief."}, messages[1]]
    rendered = runner._model.render(as_system)
    assert prompt == rendered.text.replace(runner._engine.media_marker, "<__media__>")
    begun = [*messages, {"role": "assistant", "content": "It is"}]
    assert post(server, "/apply-template", messages=begun, continue_final_message=True)["prompt"].endswith(
        "It is"
    )


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": 5}, "content"),
        ("/tokenize", {"content": "word " * 200_000}, "n_ctx"),
        ("/detokenize", {"tokens": [10**6]}, "out of range"),
        ("/detokenize", {"tokens": "Hello"}, "tokens"),
        ("/apply-template", {"messages": []}, "messages"),
    ],
)
def test_what_is_wrong_is_told(server: Server, path: str, body: dict[str, Any], words: str) -> None:
    status, _, data = server.request("POST", path, body)
    assert status == 400
    assert words in json.loads(data)["error"]["message"]


def test_a_model_has_the_name_that_it_is_given_and_requests_are_logged() -> None:
    options = ("--n-ctx", "1024", "--slots", "1", "--alias", "my/clock", "--access-log")
    with serving(*options) as server:
        assert [model["id"] for model in get(server, "/v1/models")["data"]] == ["my/clock"]
        for name in ("my/clock", FILE):
            assert get(server, f"/v1/models/{name}")["meta"]["file"] == bundled_model().name
        answer = server.chat([question("Hello")], max_tokens=1)
        assert answer["model"] == "my/clock"
        server.request("GET", "/v1/nothing%0Aforged?key=secret")
        wait_for(lambda: len(server.stderr().splitlines()) == 5)
        lines = server.stderr().splitlines()
    assert all(
        re.fullmatch(r'\S+ 127\.0\.0\.1 (GET|POST) "/[^"]*" \d+ \d+ ms \d+ bytes', line) for line in lines
    )
    assert ' POST "/v1/chat/completions" 200 ' in lines[3]
    assert ' GET "/v1/nothing\\nforged" 404 ' in lines[4]
    assert "secret" not in "".join(lines)
