"""Ollama's API: its own Python package against a server of the bundled model, and JSON where the package hides it."""

from __future__ import annotations

import base64
import json
import re
import socket
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

ollama = pytest.importorskip("ollama", reason="needs ollama")

from test_thoughts import ANY, THINKING  # noqa: E402

from pyfastv import model_identity  # noqa: E402
from pyfastv.engine.job import Piece  # noqa: E402
from pyfastv.models import bundled_mmproj, bundled_model  # noqa: E402
from pyfastv.models.facts import ModelFacts  # noqa: E402
from pyfastv.serve.addresses import address  # noqa: E402
from pyfastv.serve.ollama_messages import OllamaMessage, conversation  # noqa: E402
from pyfastv.serve.ollama_replies import LineForm  # noqa: E402

from serving import CLOCK, Server, data_uri, question, serving  # noqa: E402
from test_serve_process import health, wait_for  # noqa: E402

MODEL = "tiny-llava-Q4_K_M.gguf:latest"
GREEDY = {"temperature": 0}
CLOCK_BASE64 = base64.b64encode(CLOCK.picture.read_bytes()).decode()


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[ollama.Client]:
    client = ollama.Client(host=server.url)
    yield client
    client.close()


def asked(**fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": CLOCK.question, "images": [CLOCK.picture], **fields}


def lines(server: Server, path: str, **body: Any) -> list[dict[str, Any]]:
    status, headers, data = server.request("POST", path, body)
    assert status == 200, data
    assert headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in data.decode().splitlines()]


def refused(server: Server, path: str, body: Any, status: int = 400) -> str:
    got, headers, data = server.request("POST", path, body)
    assert (got, headers["content-type"]) == (status, "application/json"), data
    told = json.loads(data)
    assert set(told) == {"error"}
    message: str = told["error"]
    return message


# the model


def test_the_model_is_listed_and_shown(client: ollama.Client) -> None:
    (listed,) = client.list().models
    assert listed.model == MODEL
    assert listed.size == sum(path.stat().st_size for path in (bundled_model(), bundled_mmproj()))
    assert (listed.details.format, listed.details.quantization_level) == ("gguf", "Q4_K_M")
    assert listed.details.parameter_size == f"{model_identity()['n_params'] / 1e6:.0f}M"
    newest = max(path.stat().st_mtime for path in (bundled_model(), bundled_mmproj()))
    assert listed.modified_at.timestamp() == pytest.approx(newest, abs=1)
    shown = client.show(listed.model)
    assert shown.details == listed.details
    assert shown.capabilities == ["completion", "vision"]
    family = shown.modelinfo["general.architecture"]
    assert shown.details.families == [family, "clip"]
    assert shown.modelinfo[f"{family}.block_count"] == 12
    (running,) = client.ps().models
    assert (running.model, running.digest, running.context_length) == (MODEL, listed.digest, 2048)
    assert running.expires_at > datetime.now(running.expires_at.tzinfo)


def test_the_version_is_one_that_clients_ask_for(server: Server) -> None:
    told = json.loads(server.request("GET", "/api/version")[2])
    assert tuple(map(int, told["version"].split("."))) >= (0, 6, 4)
    for path in ("/", "/api/version", "/api/tags"):
        assert server.request("HEAD", path)[::2] == (200, b"")
    assert server.request("GET", "/")[1]["content-type"].startswith("text/html")


@pytest.mark.parametrize(
    ("n_params", "label"),
    [(0, "0"), (7, "7"), (999, "999"), (1000, "1K"), (45_300_000, "45M"), (7_241_732_096, "7.2B")],
)
def test_parameters_are_told_in_short(n_params: int, label: str) -> None:
    assert ModelFacts("llama", n_params, "F16", 0, 0, 0, 0.0, "", {}, None).size_label == label


@pytest.mark.parametrize("spelling", ["/api/chat", "/v1/api/chat", "/api/api/chat", "//api/chat/"])
def test_addresses_of_clients_that_add_to_what_they_are_given(spelling: str) -> None:
    assert address(spelling) == "/api/chat"


# answers


def test_questions_about_pictures_are_answered(server: Server, client: ollama.Client) -> None:
    answer = client.chat("any", [asked()], options=GREEDY)
    assert (answer.message.role, answer.message.content) == ("assistant", CLOCK.answer)
    assert (answer.done, answer.done_reason, answer.model) == (True, "stop", "any")
    generated = client.generate("any", CLOCK.question, images=[CLOCK.picture], options=GREEDY)
    assert generated.response == CLOCK.answer
    chat = server.chat([question(CLOCK.question, data_uri(CLOCK.picture))])["usage"]
    for one in (answer, generated):
        assert one.prompt_eval_count == chat["prompt_tokens"]
        assert one.eval_count == chat["completion_tokens"]
        assert one.total_duration >= one.prompt_eval_duration + one.eval_duration > 0
        assert one.load_duration == 0


@pytest.mark.parametrize(
    "picture", [CLOCK_BASE64, f"{CLOCK_BASE64[:76]}\n{CLOCK_BASE64[76:]}", data_uri(CLOCK.picture)]
)
def test_pictures_are_base64_with_and_without_what_a_data_uri_begins_with(
    server: Server, picture: str
) -> None:
    told = lines(server, "/api/generate", prompt=CLOCK.question, images=[picture], options=GREEDY)
    assert "".join(one["response"] for one in told) == CLOCK.answer
    assert told[-1]["visual_tokens"] == 576


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        ("a", 0, ["a"]), ("", 0, [""]), ("a", 2, [0, 1, "a"]), ("", 1, [0]), ("[img]", 0, ["[img]"]),
        ("a [img] b", 1, ["a ", 0, " b"]), ("[img]a[img]", 2, [0, "a", 1]), ("a[img]", 3, [1, 2, "a", 0]),
        ("a[img]b[img]", 1, ["a", 0, "b[img]"]),
    ],
)  # fmt: skip
def test_pictures_are_where_the_text_says(text: str, n: int, expected: list[str | int]) -> None:
    assert OllamaMessage(role="user", content=text, images=["x"] * n).placed == expected


def test_a_picture_is_where_the_text_says_in_the_prompt(server: Server, client: ollama.Client) -> None:
    """As Frigate writes it: a label, and its picture behind it."""
    content = f"Frame 1:\n[img]\n{CLOCK.question}"
    answer = client.chat("any", [asked(content=content)], options=GREEDY)
    parts = [
        {"type": "text", "text": "Frame 1:\n"},
        {"type": "image_url", "image_url": {"url": data_uri(CLOCK.picture)}},
        {"type": "text", "text": f"\n{CLOCK.question}"},
    ]
    chat = server.chat([{"role": "user", "content": parts}])
    assert answer.message.content == chat["choices"][0]["message"]["content"]
    assert answer.prompt_eval_count == chat["usage"]["prompt_tokens"]


def test_a_file_is_read_as_far_as_it_is_allowed(server: Server) -> None:
    url = f"file://{server.folder}/clock.png"
    body = {"prompt": CLOCK.question, "images": [url], "options": GREEDY, "stream": False}
    answer = json.loads(server.request("POST", "/api/generate", body)[2])
    assert answer["response"] == CLOCK.answer
    body["images"] = [f"file://{server.folder}/none.png"]
    assert "no such file in the folder" in refused(server, "/api/generate", body)


@pytest.mark.parametrize("generates", [False, True])
def test_a_stream_is_lines_and_says_what_a_whole_answer_says(server: Server, generates: bool) -> None:
    path = "/api/generate" if generates else "/api/chat"
    text = {"prompt": "Hello"} if generates else {"messages": [{"role": "user", "content": "Hello"}]}
    body = {**text, "options": {**GREEDY, "num_predict": 3}}
    said = "response" if generates else "message"
    told = lines(server, path, **body)
    whole = json.loads(server.request("POST", path, {**body, "stream": False})[2])
    texts = [one["response"] if generates else one["message"]["content"] for one in told]
    assert "".join(texts) == (whole["response"] if generates else whole["message"]["content"])
    assert [one["done"] for one in told] == [False] * (len(told) - 1) + [True]
    assert texts[0] == texts[-1] == ""
    assert len(texts) > 2
    assert all(set(one) == {"model", "created_at", said, "done"} for one in told[:-1])
    assert set(told[-1]) == set(whole)
    assert (whole["done_reason"], whole["eval_count"]) == ("length", 3)
    assert told[-1]["eval_count"] == 3


def test_the_package_streams(client: ollama.Client) -> None:
    parts = list(client.chat("any", [asked()], options=GREEDY, stream=True))
    assert "".join(part.message.content for part in parts) == CLOCK.answer
    assert parts[-1].done_reason == "stop"
    parts = list(client.generate("any", CLOCK.question, images=[CLOCK.picture], options=GREEDY, stream=True))
    assert "".join(part.response for part in parts) == CLOCK.answer


def test_a_conversation_goes_on(client: ollama.Client) -> None:
    more = [
        {"role": "assistant", "content": CLOCK.answer},
        {"role": "User", "content": "Is the clock digital or analog?"},
    ]
    answer = client.chat("any", [asked(), *more], options=GREEDY)
    assert "analog" in answer.message.content.lower()


def test_a_system_message_is_one_of_theconversation(server: Server, client: ollama.Client) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    generated = client.generate("any", "Hello", system="Be brief.", options={**GREEDY, "num_predict": 5})
    chat = server.chat(messages, max_tokens=5)
    assert generated.response == chat["choices"][0]["message"]["content"]
    assert generated.prompt_eval_count == chat["usage"]["prompt_tokens"]


def test_a_raw_prompt_is_taken_as_it_is(server: Server, client: ollama.Client) -> None:
    prompt = "USER: What color is the sky? ASSISTANT:"
    options = {**GREEDY, "num_predict": 5}
    text = json.loads(
        server.request("POST", "/v1/completions", {"prompt": prompt, "max_tokens": 5, **GREEDY})[2]
    )
    assert client.generate("any", prompt, raw=True, options=options).response == text["choices"][0]["text"]
    shown = f"USER: [img-0]\n{CLOCK.question} ASSISTANT:"
    generated = client.generate("any", shown, raw=True, images=[CLOCK.picture], options=GREEDY)
    assert generated.response.strip() == CLOCK.answer
    for wrong in (CLOCK.question, "[img-0] [img-0]", "[img-1]"):
        with pytest.raises(ollama.ResponseError, match=r"\[img-0\] for the first"):
            client.generate("any", wrong, raw=True, images=[CLOCK.picture])


SCHEMA = {"type": "object", "properties": {"kind": {"enum": ["analog"]}}, "required": ["kind"]}


def test_an_answer_has_the_format_that_is_asked_for(client: ollama.Client) -> None:
    options = {**GREEDY, "num_predict": 60}
    answer = client.chat("any", [asked()], format=SCHEMA, options=options)
    assert json.loads(answer.message.content) == {"kind": "analog"}
    parts = client.generate("any", "Which kind?", format=SCHEMA, options=options, stream=True)
    assert json.loads("".join(part.response for part in parts)) == {"kind": "analog"}
    answer = client.generate("any", "Describe it.", format="json", options=options)
    assert answer.response.startswith("{")
    assert client.chat("any", [asked()], format="", options=GREEDY).message.content == CLOCK.answer


def test_options_are_honoured(server: Server, client: ollama.Client) -> None:
    def say(**options: Any) -> str:
        fields = {"num_predict": 12, **options}
        return str(client.generate("any", "Tell me something.", options=fields).response)

    hot = {"temperature": 2, "seed": 42}
    say(**hot)  # what is in the context already is not computed again, and rounds otherwise
    assert say(**hot) == say(**hot)
    assert len({say(temperature=2, seed=seed) for seed in range(4)}) > 1
    assert say(temperature=2, top_k=1) == say(temperature=0)
    answer = client.chat("any", [asked()], options={**GREEDY, "stop": ["9"]})
    assert (answer.message.content, answer.done_reason) == ("It is ", "stop")
    for most in (-1, -2):
        answer = client.chat("any", [asked()], options={**GREEDY, "num_predict": most})
        assert answer.message.content == CLOCK.answer
    none = client.chat("any", [asked()], options={**GREEDY, "num_predict": 0})
    assert (none.message.content, none.eval_count, none.done_reason) == ("", 0, "length")


def test_what_only_tells_how_a_model_is_loaded_is_taken(client: ollama.Client) -> None:
    options = {
        "num_ctx": 2048,
        "num_gpu": 99,
        "num_thread": 2,
        "num_batch": 512,
        "num_keep": 4,
        "use_mmap": True,
    }
    neutral = {"mirostat": 0, "mirostat_tau": 5.0, "tfs_z": 1.0, "penalize_newline": True}
    answer = client.chat("any", [asked()], options={**GREEDY, **options, **neutral}, keep_alive="10m")
    assert answer.message.content == CLOCK.answer


def test_a_schedule_can_be_among_the_options(server: Server) -> None:
    options = {**GREEDY, "fastv": "k=2,drop=0.75", "fastv_details": True}
    (*_, last) = lines(server, "/api/generate", prompt=CLOCK.question, images=[CLOCK_BASE64], options=options)
    assert (last["visual_tokens"], last["visual_tokens_kept"]) == (576, 144)
    assert [len(kept) for kept in last["fastv_details"]["kept"]] == [144]


def test_probabilities_are_told(client: ollama.Client) -> None:
    options = {**GREEDY, "num_predict": 3}
    answer = client.chat("any", [asked()], logprobs=True, top_logprobs=2, options=options)
    assert len(answer.logprobs) == answer.eval_count == 3
    for one in answer.logprobs:
        assert [one.token, one.logprob] == [
            one.top_logprobs[0].token,
            pytest.approx(one.top_logprobs[0].logprob),
        ]
        assert len(one.top_logprobs) == 2
    parts = list(client.generate("any", "Hello", logprobs=True, options=options, stream=True))
    assert sum(len(part.logprobs or ()) for part in parts) == 3


@pytest.mark.parametrize(
    ("keep_alive", "reason"),
    [
        (None, "load"),
        (0, "unload"),
        ("0", "unload"),
        ("0s", "unload"),
        (-1, "load"),
        ("1h30m", "load"),
        (300, "load"),
    ],
)
def test_a_request_without_a_question_loads_nothing(
    client: ollama.Client, keep_alive: float | str | None, reason: str
) -> None:
    for answer in (
        client.generate("any", keep_alive=keep_alive),
        client.chat("any", [], keep_alive=keep_alive),
        *client.generate("any", "", keep_alive=keep_alive, stream=True),
    ):
        assert (answer.done, answer.done_reason, answer.eval_count) == (True, reason, None)


# thoughts


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    file: Path = tmp_path_factory.mktemp("thinking") / "template.jinja"
    file.write_text(THINKING)
    with serving("--n-ctx", "512", "--threads", "1", "--chat-template", str(file)) as server:
        yield server


def test_thoughts_come_apart_and_are_had_on_request(thinking: Server) -> None:
    options = {name: value for name, value in ANY.items() if name != "max_tokens"} | {"num_predict": 12}
    client = ollama.Client(host=thinking.url)
    messages = [{"role": "user", "content": "Hello"}]
    apart = thinking.chat(messages, **ANY)["choices"][0]["message"]
    for think in (None, True):
        message = client.chat("any", messages, think=think, options=options).message
        assert message.content == ""
        assert message.thinking == apart["reasoning_content"]
    parts = list(client.generate("any", "Hello", think=True, options=options, stream=True))
    assert "".join(part.thinking or "" for part in parts) == apart["reasoning_content"]
    plain = client.generate("any", "Hello", think=False, options=options)
    assert plain.response
    assert plain.thinking is None
    levels = {
        think: client.chat("any", messages, think=think, options={"num_predict": 0}).prompt_eval_count
        for think in (False, True, "low")
    }
    assert levels[False] < levels[True] < levels["low"]
    client.close()


# tools


def test_calls_and_results_without_ids_belong_together() -> None:
    def call(name: str) -> dict[str, Any]:
        return {"function": {"name": name, "arguments": {"city": "Oslo"}}}

    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call("weather"), call("time"), call("time")]},
        {"role": "tool", "content": "noon", "tool_name": "time"},
        {"role": "tool", "content": "rain"},
        {"role": "tool", "content": "one", "tool_name": "time"},
    ]
    told = conversation([OllamaMessage.model_validate(message) for message in messages])
    weather, noon, one = (call.id for call in told[1].tool_calls or ())
    assert [message.tool_call_id for message in told[2:]] == [noon, weather, one]
    assert len({weather, noon, one}) == 3
    assert told[1].beside_content()["tool_calls"][0]["function"] == {
        "name": "weather",
        "arguments": {"city": "Oslo"},
    }


def test_results_of_tools_are_part_of_the_prompt(client: ollama.Client) -> None:
    history = [
        {"role": "user", "content": "What is the weather in Toronto?"},
        {
            "role": "assistant",
            "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Toronto"}}}],
        },
        {"role": "tool", "content": "11 degrees celsius", "tool_name": "get_weather"},
    ]
    options = {"num_predict": 0}
    counts = [
        client.chat("any", history[:n], options=options).prompt_eval_count for n in range(1, len(history) + 1)
    ]
    assert counts == sorted(set(counts))


class _ChatOfCalls:
    """What :class:`pyfastv.serve.chat.ChatForm` says of an answer that calls a function."""

    def __init__(self) -> None:
        function = {"name": "get_weather", "arguments": ""}
        self.deltas = [
            {"content": "I look."},
            {"tool_calls": [{"index": 0, "id": "a1", "type": "function", "function": function}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": ' "Oslo"}'}}]},
        ]

    def begin(self, jobs: Sequence[Any]) -> None:
        self.left = iter(self.deltas)

    def piece(self, index: int, piece: Piece) -> dict[str, Any]:
        return {"delta": next(self.left), "logprobs": None}

    def closing(self, index: int, finish_reason: str) -> dict[str, Any]:
        return {"delta": {}}


def test_calls_that_are_streamed_in_parts_are_one_object(runner: Any) -> None:
    report = runner.ask(None, "Hello", max_tokens=1).report
    form = LineForm(_ChatOfCalls(), "any", 0.0)  # type: ignore[arg-type]
    form.begin([SimpleNamespace(report=report)])  # type: ignore[list-item]
    told = [form.piece(0, Piece("")) for _ in range(4)]
    assert json.loads(told[0])["message"]["content"] == "I look."
    assert told[1:] == ["", "", ""]
    calls, last = map(json.loads, form.closing(0, "tool_calls").splitlines())
    assert calls["message"]["tool_calls"] == [
        {"id": "a1", "function": {"index": 0, "name": "get_weather", "arguments": {"city": "Oslo"}}}
    ]
    assert (calls["done"], last["done"], last["done_reason"]) == (False, True, "stop")


# what is refused


PLAIN = {"messages": [{"role": "user", "content": "Hello"}]}
BODIES = {
    "nothing": ("/api/chat", b"", "no body"),
    "broken JSON": ("/api/generate", b'{"prompt": ', "not JSON"),
    "an unknown role": ("/api/chat", {"messages": [{"role": "root"}]}, "messages.0.role"),
    "content of parts": ("/api/chat", {"messages": [{"role": "user", "content": [1]}]}, "messages.0.content"),
    "a picture of no base64": (
        "/api/chat",
        {"messages": [{"role": "user", "content": "?", "images": [CLOCK_BASE64, "@@@"]}]},
        "messages.0.images.1: .*base64",
    ),
    "a picture of no picture": ("/api/generate", {"prompt": "?", "images": ["aGVsbG8="]}, "picture"),
    "an empty picture": ("/api/generate", {"prompt": "?", "images": [""]}, "empty"),
    "a path": ("/api/generate", {"prompt": "?", "images": ["/etc/passwd"]}, "picture"),
    "three pictures": ("/api/generate", {"prompt": "?", "images": [CLOCK_BASE64] * 3}, "limit is 2"),
    "a larger context": ("/api/chat", {**PLAIN, "options": {"num_ctx": 8192}}, "num_ctx: 8192 .* 2048"),
    "a context of no number": ("/api/chat", {**PLAIN, "options": {"num_ctx": "8k"}}, "options.num_ctx"),
    "mirostat": ("/api/chat", {**PLAIN, "options": {"mirostat": 2}}, "mirostat is not supported"),
    "tfs_z": ("/api/chat", {**PLAIN, "options": {"tfs_z": 0.5}}, "tfs_z is not supported"),
    "a hot temperature": (
        "/api/chat",
        {**PLAIN, "options": {"temperature": "hot"}},
        "options.temperature: .*hot",
    ),
    "a num_predict of half": ("/api/chat", {**PLAIN, "options": {"num_predict": 1.5}}, "options.num_predict"),
    "an unknown schedule": ("/api/chat", {**PLAIN, "options": {"fastv": "k=banana"}}, "banana"),
    "an unknown format": ("/api/chat", {**PLAIN, "format": "yaml"}, 'expected "json" or a valid JSON Schema'),
    "a schema of soup": ("/api/chat", {**PLAIN, "format": {"type": "soup"}}, "soup"),
    "much thought": ("/api/chat", {**PLAIN, "think": "much"}, "think must be true, false or one of"),
    "an unknown duration": ("/api/chat", {**PLAIN, "keep_alive": "soon"}, "keep_alive.*soon"),
    "a tool without a name": ("/api/chat", {**PLAIN, "tools": [{"type": "function"}]}, r"tools\[0\]"),
    "suffix": ("/api/generate", {"prompt": "a", "suffix": "b"}, "suffix is not supported"),
    "template": ("/api/generate", {"prompt": "a", "template": "{{ .Prompt }}"}, "template is not supported"),
    "context": ("/api/generate", {"prompt": "a", "context": [1, 2]}, "context is not supported.*/api/chat"),
    "raw with system": ("/api/generate", {"prompt": "a", "raw": True, "system": "b"}, "raw mode"),
    "debug": ("/api/chat", {**PLAIN, "_debug_render_only": True}, "_debug_render_only is not supported"),
    "a book": ("/api/generate", {"prompt": "word " * 50_000}, "n_ctx"),
}


@pytest.mark.parametrize("name", BODIES)
def test_bad_bodies_are_refused_in_ollamas_form(server: Server, name: str) -> None:
    path, body, words = BODIES[name]
    assert re.search(words, refused(server, path, body))


@pytest.mark.parametrize("name", ["pull", "push", "create", "copy", "embed", "embeddings"])
def test_what_there_is_not_is_refused_by_name(server: Server, name: str) -> None:
    message = refused(server, f"/api/{name}", {"model": "llava", "input": "a"})
    assert message.startswith(f"/api/{name}: this server ")


def test_the_package_raises_what_is_told(client: ollama.Client) -> None:
    for call in (
        lambda: client.pull("llava"),
        lambda: client.delete("llava"),
        lambda: client.embed("llava", "a"),
        lambda: list(client.pull("llava", stream=True)),
        lambda: client.chat("any", [{"role": "user", "content": "Hello"}], options={"num_ctx": 10**6}),
    ):
        with pytest.raises(ollama.ResponseError, match="this server") as caught:
            call()
        assert caught.value.status_code == 400


def test_errors_before_a_route_have_the_same_form(server: Server) -> None:
    for method, path, headers, status in (
        ("POST", "/api/nothing", {}, 404),
        ("GET", "/api/chat", {}, 405),
        ("POST", "/api/chat", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ("POST", "/api/chat", {"Host": "evil.example"}, 421),
    ):
        got, _, data = server.request(method, path, PLAIN, headers)
        assert (got, list(json.loads(data))) == (status, ["error"])
        assert isinstance(json.loads(data)["error"], str)


def test_a_client_that_leaves_a_stream_frees_its_slot(server: Server) -> None:
    form = {"type": "array", "items": {"type": "boolean"}, "minItems": 400}
    body = json.dumps({"prompt": "Go on.", "format": form}).encode()
    parts = urlsplit(server.url)
    head = "POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_for(lambda: health(server)["active"] == 1)
        data = b""
        while b'"done":false' not in data:
            data += connection.recv(4096)
    wait_for(lambda: health(server)["active"] == 0, 5.0)
