"""Anthropic's messages: the official package against a server, and the translation of what no small model would say."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest

anthropic = pytest.importorskip("anthropic", reason="needs anthropic")
pydantic = pytest.importorskip("pydantic", reason="needs the extra serve")

from pyfastv.serve.message_events import MessageTelling  # noqa: E402
from pyfastv.serve.messages import MessagesRequest  # noqa: E402

from serving import CLOCK, Server, data_uri, question, send  # noqa: E402
from test_serve_process import health, wait_for  # noqa: E402

MODEL = "tiny-llava-Q4_K_M.gguf"
PATH = "/v1/messages"
COLD = {"temperature": 0}  # newer packages have no keyword for it
PICTURE = base64.b64encode(CLOCK.picture.read_bytes()).decode()


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0) as client:
        yield client


def picture(data: str = PICTURE) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def asked(text: str = CLOCK.question) -> list[dict[str, Any]]:
    """About the clock."""
    return [{"role": "user", "content": [picture(), {"type": "text", "text": text}]}]


def test_a_picture_is_seen(client: anthropic.Anthropic, server: Server) -> None:
    message = client.messages.create(model="any", max_tokens=40, messages=asked(), extra_body=COLD)
    [block] = message.content
    assert (block.type, block.text) == ("text", CLOCK.answer)
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert (message.type, message.role, message.model) == ("message", "assistant", MODEL)
    chat = server.chat([question(CLOCK.question, data_uri(CLOCK.picture))])
    usage = message.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == chat["usage"]["prompt_tokens"]
    assert usage.output_tokens == chat["usage"]["completion_tokens"]
    assert (usage.visual_tokens, usage.visual_tokens_kept) == (576, 288)


def test_what_the_system_says_is_text_or_blocks(client: anthropic.Anthropic, server: Server) -> None:
    options = {"model": MODEL, "max_tokens": 8, "extra_body": COLD}
    hello = [{"role": "user", "content": "Hello"}]
    text = client.messages.create(system="Be brief.", messages=hello, **options)
    blocks = client.messages.create(
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        messages=hello,
        **options,
    )
    chat = server.chat([{"role": "system", "content": "Be brief."}, *hello], max_tokens=8)
    said = chat["choices"][0]["message"]["content"]
    assert text.content[0].text == blocks.content[0].text == said


def test_a_picture_of_the_servers_folder_by_its_address(client: anthropic.Anthropic, server: Server) -> None:
    source = {"type": "url", "url": f"file://{server.folder}/clock.png"}
    content = [{"type": "image", "source": source}, {"type": "text", "text": CLOCK.question}]
    message = client.messages.create(
        model=MODEL, max_tokens=40, messages=[{"role": "user", "content": content}], extra_body=COLD
    )
    assert message.content[0].text == CLOCK.answer


def test_the_events_of_a_stream_and_their_order(client: anthropic.Anthropic) -> None:
    options = {"model": MODEL, "max_tokens": 40, "messages": asked(), "extra_body": COLD}
    whole = client.messages.create(**options)
    with client.messages.create(**options, stream=True) as stream:
        events = list(stream)
    names = [event.type for event in events if event.type != "ping"]
    deltas = [event for event in events if event.type == "content_block_delta"]
    assert names == [
        *("message_start", "content_block_start", *["content_block_delta"] * len(deltas)),
        *("content_block_stop", "message_delta", "message_stop"),
    ]
    assert len(deltas) > 1
    assert "".join(event.delta.text for event in deltas) == whole.content[0].text == CLOCK.answer
    begun, ended = events[0].message, events[-2]
    assert begun.usage.input_tokens == whole.usage.input_tokens + whole.usage.cache_read_input_tokens
    assert (begun.content, begun.stop_reason) == ([], None)
    assert ended.delta.stop_reason == "end_turn"
    assert ended.usage.output_tokens == whole.usage.output_tokens


def test_the_packages_own_stream_reads_it(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model=MODEL, max_tokens=40, messages=asked(), extra_body=COLD) as stream:
        said = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert said == final.content[0].text == CLOCK.answer
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens > 0


def test_a_stream_pings_before_there_is_anything_to_say(server: Server) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1, "stream": True}
    status, headers, data = server.request("POST", PATH, body)
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    blocks = data.decode().split("\n\n")
    assert blocks[0].startswith("event: message_start\n")
    assert blocks[1] == 'event: ping\ndata: {"type":"ping"}'


@pytest.mark.parametrize("stream", [False, True])
def test_why_an_answer_ended(client: anthropic.Anthropic, stream: bool) -> None:
    def ask(**options: Any) -> Any:
        options = {"model": MODEL, "max_tokens": 40, "messages": asked(), "extra_body": COLD, **options}
        if not stream:
            return client.messages.create(**options)
        with client.messages.stream(**options) as told:
            return told.get_final_message()

    stopped = ask(stop_sequences=["~", "9"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "9")
    assert stopped.content[0].text == "It is "
    cut = ask(max_tokens=2)
    assert (cut.stop_reason, cut.stop_sequence, cut.usage.output_tokens) == ("max_tokens", None, 2)
    none = ask(max_tokens=0)
    assert (none.content, none.usage.output_tokens) == ([], 0)


def test_an_answer_that_was_begun_goes_on(client: anthropic.Anthropic) -> None:
    begun = {"role": "assistant", "content": "It is 9"}
    message = client.messages.create(model=MODEL, max_tokens=40, messages=[*asked(), begun], extra_body=COLD)
    assert message.content[0].text == ":10."


def test_later_turns_build_on_earlier_ones(client: anthropic.Anthropic) -> None:
    first = client.messages.create(model=MODEL, max_tokens=40, messages=asked(), extra_body=COLD)
    messages = [
        *asked(),
        {"role": "assistant", "content": [block.to_dict() for block in first.content]},
        {"role": "user", "content": "Is the clock digital or analog?"},
    ]
    second = client.messages.create(model=MODEL, max_tokens=40, messages=messages, extra_body=COLD)
    assert "analog" in second.content[0].text.lower()
    assert second.usage.cache_read_input_tokens > 576


class Clock(pydantic.BaseModel):
    """What is seen of one."""

    kind: Literal["digital", "analog"]


def test_an_answer_follows_a_schema(client: anthropic.Anthropic) -> None:
    schema = Clock.model_json_schema()
    for fields in (
        {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
        {"output_format": {"type": "json_schema", "schema": schema}},
    ):
        message = client.messages.create(
            model=MODEL, max_tokens=40, messages=asked(), extra_body={**COLD, **fields}
        )
        assert Clock.model_validate_json(message.content[0].text)


def test_an_answer_is_parsed_into_a_class(client: anthropic.Anthropic) -> None:
    if not hasattr(client.messages, "parse"):
        pytest.skip("an older anthropic package")
    parsed = client.messages.parse(
        model=MODEL, max_tokens=40, messages=asked(), extra_body=COLD, output_format=Clock
    )
    assert isinstance(parsed.parsed_output, Clock)


def test_tokens_of_a_request_are_counted(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=asked(), system="Be brief.")
    usage = client.messages.create(model=MODEL, max_tokens=1, messages=asked(), system="Be brief.").usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens > 576
    reduced = client.messages.count_tokens(
        model=MODEL, messages=asked(), system="Be brief.", extra_body={"reduce": "pool,window=2"}
    )
    assert counted.input_tokens - reduced.input_tokens == 576 - 144


def test_fields_of_this_project_are_taken(client: anthropic.Anthropic) -> None:
    message = client.messages.create(
        model=MODEL, max_tokens=40, messages=asked(), extra_body={**COLD, "fastv": "k=2,drop=0.75"}
    )
    assert message.usage.visual_tokens_kept == 144
    assert message.timings["predicted_n"] == message.usage.output_tokens


REFUSED = [
    ({"messages": asked()}, "max_tokens"),
    ({"messages": [], "max_tokens": 1}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "document"}]}], "max_tokens": 1}, "document"),
    ({"messages": [{"role": "root", "content": "x"}], "max_tokens": 1}, "role"),
    ({"messages": asked(), "max_tokens": 1, "container": "c"}, "container"),
    ({"messages": asked(), "max_tokens": 1, "mcp_servers": [{"url": "x"}]}, "mcp_servers"),
    ({"messages": asked(), "max_tokens": 1, "n": 2}, "n is not supported"),
    ({"messages": asked(), "max_tokens": 1, "min_tokens": 2}, "min_tokens"),
    ({"messages": asked(), "max_tokens": 1, "top_p": 5}, "top_p"),
    ({"messages": asked(), "max_tokens": 1, "fastv": "k=99,drop=0.5"}, "99"),
    (
        {"messages": asked(), "max_tokens": 1, "tools": [{"type": "bash_20250124", "name": "b"}]},
        "bash_20250124",
    ),
    (
        {"messages": [{"role": "user", "content": [picture("AAAA")]}], "max_tokens": 1},
        "^messages.0.content.0: .*not a picture",
    ),
    ({"messages": [{"role": "user", "content": "word " * 3000}], "max_tokens": 1}, "n_ctx"),
]


@pytest.mark.parametrize(
    ("body", "words"), REFUSED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_is_refused_has_anthropics_form(server: Server, body: dict[str, Any], words: str) -> None:
    import re

    for stream in (False, True):
        status, _, data = server.request("POST", PATH, {**body, "stream": stream})
        told = json.loads(data)
        assert (status, told["type"], set(told["error"])) == (400, "error", {"type", "message"})
        assert told["error"]["type"] == "invalid_request_error"
        assert re.search(words, told["error"]["message"])


def test_errors_are_the_packages_exceptions(client: anthropic.Anthropic, server: Server) -> None:
    with pytest.raises(anthropic.BadRequestError, match="document"):
        client.messages.create(
            model=MODEL,
            max_tokens=1,
            messages=[{"role": "user", "content": [{"type": "document", "source": {}}]}],
        )
    for path, status, kind in (
        (f"{PATH}/batches", 404, "not_found_error"),
        (f"{PATH}/count_tokens", 400, "invalid_request_error"),
    ):
        got, _, data = server.request("POST", path, {})
        assert (got, json.loads(data)["error"]["type"]) == (status, kind)
    got, _, data = server.request("POST", PATH, b"x" * 5_000_000)
    assert (got, json.loads(data)["error"]["type"]) == (413, "request_too_large")


# three different booleans: what a grammar cannot say is looked for afterwards, and never there
NEVER = {"type": "array", "items": {"type": "boolean"}, "minItems": 3, "maxItems": 3, "uniqueItems": True}


def test_what_goes_wrong_in_a_stream_is_its_last_event(client: anthropic.Anthropic) -> None:
    form = {"output_config": {"format": {"type": "json_schema", "schema": NEVER}}}
    options = {
        "model": MODEL,
        "max_tokens": 40,
        "messages": [{"role": "user", "content": "Say it."}],
        "extra_body": {**COLD, **form},
    }
    with (
        pytest.raises(anthropic.APIStatusError, match="schema"),
        client.messages.create(**options, stream=True) as stream,
    ):
        list(stream)
    with pytest.raises(anthropic.InternalServerError, match="schema"):
        client.messages.create(**options)


def test_a_client_that_leaves_frees_its_slot(server: Server) -> None:
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 400}
    body = {
        "messages": [{"role": "user", "content": "Go on."}],
        "max_tokens": 1500,
        "output_config": {"format": {"type": "json_schema", "schema": schema}},
    }
    for stream in (False, True):
        connection = send(server, {**body, "stream": stream}, PATH)
        wait_for(lambda: health(server)["active"] == 1)
        connection.close()
        wait_for(lambda: health(server)["active"] == 0, 5.0)


# the translation


def chat(**fields: Any) -> Any:
    return MessagesRequest.model_validate({"max_tokens": 5, **fields}).chat()


def text(words: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": words}]


def test_blocks_of_an_agent_become_messages() -> None:
    messages = [
        {"role": "user", "content": "Look."},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": ""},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_1", "name": "see", "input": {"at": 1}},
                {"type": "tool_use", "id": "toolu_2", "name": "see", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_1",
                    "content": [{"type": "text", "text": "a clock"}, picture("AAAA")],
                },
                {"type": "tool_result", "tool_use_id": "toolu_2", "content": "nothing", "is_error": True},
                {"type": "text", "text": "And?"},
            ],
        },
    ]
    calls = [
        {"id": "toolu_1", "type": "function", "function": {"name": "see", "arguments": {"at": 1}}},
        {"id": "toolu_2", "type": "function", "function": {"name": "see", "arguments": {}}},
    ]
    seen = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    found = chat(messages=messages, system="Be kind.")
    assert [message.model_dump(exclude_none=True) for message in found.messages] == [
        {"role": "system", "content": text("Be kind.")},
        {"role": "user", "content": text("Look.")},
        {"role": "assistant", "content": text("I look."), "reasoning_content": "Hm.", "tool_calls": calls},
        {"role": "tool", "content": [*text("a clock"), seen], "tool_call_id": "toolu_1"},
        {"role": "tool", "content": [*text("Error:"), *text("nothing")], "tool_call_id": "toolu_2"},
        {"role": "user", "content": text("And?")},
    ]
    assert found.continue_final_message is None
    places = [part.place for message in found.messages for part in message.content if part.type != "text"]
    assert places == ["messages.2.content.0.content.1"]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "see"}, {"type": "function", "function": {"name": "see"}}),
    ],
)
def test_tools_have_the_form_that_chats_have_for_them(choice: dict[str, Any], expected: Any) -> None:
    schema = {"type": "object", "properties": {}}
    tool = {"name": "see", "description": "Look.", "input_schema": schema}
    found = chat(messages=[{"role": "user", "content": "x"}], tools=[tool], tool_choice=choice)
    function = {"name": "see", "parameters": schema, "description": "Look."}
    assert found.tools == [{"type": "function", "function": function}]
    assert found.tool_choice == expected


@pytest.mark.parametrize(
    ("fields", "variables"),
    [
        ({}, {}),
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False, "thinking": False}),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 1024}},
            {"enable_thinking": True, "thinking": True},
        ),
        (
            {"output_config": {"effort": "max"}},
            {"enable_thinking": True, "thinking": True, "reasoning_effort": "xhigh"},
        ),
    ],
)
def test_thinking_is_told_to_the_template(fields: dict[str, Any], variables: dict[str, Any]) -> None:
    found = chat(messages=[{"role": "user", "content": "x"}], **fields).template_variables()
    assert {name: value for name, value in found.items() if name != "reasoning_effort"} == {
        name: value for name, value in variables.items() if name != "reasoning_effort"
    }
    if "reasoning_effort" in variables:
        assert found["reasoning_effort"] == variables["reasoning_effort"]


USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 7,
    "total_tokens": 12,
    "prompt_tokens_details": {"cached_tokens": 1},
}
CALLS = [
    {"index": 0, "id": "call_1", "type": "function", "function": {"name": "see", "arguments": '{"at": 1}'}},
    {"index": 1, "id": "call_2", "type": "function", "function": {"name": "hear", "arguments": ""}},
]


def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]}


def test_thoughts_and_calls_are_blocks() -> None:
    message = {"role": "assistant", "reasoning_content": "Well.", "content": "So.", "tool_calls": CALLS}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls"}
    whole = MessageTelling("m").whole({"choices": [choice], "usage": USAGE})
    assert whole["content"] == [
        {"type": "thinking", "thinking": "Well.", "signature": ""},
        {"type": "text", "text": "So."},
        {"type": "tool_use", "id": "call_1", "name": "see", "input": {"at": 1}},
        {"type": "tool_use", "id": "call_2", "name": "hear", "input": {}},
    ]
    assert whole["stop_reason"] == "tool_use"
    assert (whole["usage"]["input_tokens"], whole["usage"]["cache_read_input_tokens"]) == (4, 1)

    told = MessageTelling("m")
    begun = {**CALLS[0], "function": {"name": "see", "arguments": ""}}
    parts = [{"index": 0, "function": {"arguments": part}} for part in ('{"at"', ": 1}")]
    chunks = [
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning_content": "Well."}),
        chunk({"content": "So."}),
        *(chunk({"tool_calls": [part]}) for part in (begun, *parts, CALLS[1])),
        chunk({}, "tool_calls"),
        {"choices": [], "usage": USAGE},
    ]
    data = "".join(map(told.chunk, chunks)) + told.end()
    events = [
        json.loads(block.split("\n")[1].removeprefix("data: ")) for block in data.split("\n\n") if block
    ]
    starts = [event for event in events if event["type"] == "content_block_start"]
    assert [event["index"] for event in starts] == [0, 1, 2, 3]
    assert [event["content_block"]["type"] for event in starts] == [
        "thinking",
        "text",
        "tool_use",
        "tool_use",
    ]
    stops = [event["index"] for event in events if event["type"] == "content_block_stop"]
    assert stops == [0, 1, 2, 3]
    arguments = [
        event["delta"]["partial_json"]
        for event in events
        if event["type"] == "content_block_delta" and event["delta"]["type"] == "input_json_delta"
    ]
    assert json.loads("".join(arguments)) == {"at": 1}
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-1] == {"type": "message_stop"}
