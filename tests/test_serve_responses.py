"""OpenAI's responses: the official package against a server, and the translation of what no small model would say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest

openai = pytest.importorskip("openai", reason="needs openai")
pydantic = pytest.importorskip("pydantic", reason="needs the extra serve")

from pyfastv.serve.response_events import ResponseTelling  # noqa: E402
from pyfastv.serve.responses import ResponseRequest  # noqa: E402

from serving import CLOCK, Server, data_uri, send  # noqa: E402
from test_serve_process import health, wait_for  # noqa: E402

MODEL = "tiny-llava-Q4_K_M.gguf"
PATH = "/v1/responses"


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def asked(text: str = CLOCK.question) -> list[dict[str, Any]]:
    """About the clock."""
    content = [
        {"type": "input_image", "image_url": data_uri(CLOCK.picture), "detail": "auto"},
        {"type": "input_text", "text": text},
    ]
    return [{"role": "user", "content": content}]


def test_a_text_is_answered_as_in_a_chat(client: openai.OpenAI) -> None:
    response = client.responses.create(model="any", input="Hello", temperature=0, max_output_tokens=8)
    chat = client.chat.completions.create(
        model="any", messages=[{"role": "user", "content": "Hello"}], temperature=0, max_tokens=8
    )
    assert response.output_text == chat.choices[0].message.content
    assert response.model == MODEL
    assert response.usage.input_tokens == chat.usage.prompt_tokens
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens


def test_a_picture_is_seen(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model=MODEL, input=asked(), temperature=0, metadata={"a": "b"}, store=True
    )
    assert response.output_text == CLOCK.answer
    assert (response.status, response.error, response.incomplete_details) == ("completed", None, None)
    assert (response.usage.visual_tokens, response.usage.visual_tokens_kept) == (576, 288)
    assert response.metadata == {"a": "b"}
    assert response.store is False
    [message] = response.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")


def test_a_conversation_is_sent_whole_with_the_items_of_earlier_answers(client: openai.OpenAI) -> None:
    items: list[Any] = asked()
    first = client.responses.create(model=MODEL, input=items, temperature=0, instructions="Be brief.")
    items += [item.to_dict() for item in first.output]
    items.append({"role": "user", "content": "Is the clock digital or analog?"})
    second = client.responses.create(model=MODEL, input=items, temperature=0, instructions="Be brief.")
    assert "analog" in second.output_text.lower()
    assert second.usage.input_tokens_details.cached_tokens > 576


def test_the_events_of_a_stream_and_their_order(client: openai.OpenAI) -> None:
    whole = client.responses.create(model=MODEL, input=asked(), temperature=0)
    with client.responses.create(model=MODEL, input=asked(), temperature=0, stream=True) as stream:
        events = list(stream)
    names = [event.type for event in events]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert names == [
        *("response.created", "response.in_progress", "response.output_item.added"),
        *("response.content_part.added", *["response.output_text.delta"] * len(deltas)),
        *("response.output_text.done", "response.content_part.done", "response.output_item.done"),
        "response.completed",
    ]
    assert len(deltas) > 1
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in deltas) == whole.output_text
    final = events[-1].response
    assert final.output_text == whole.output_text == events[len(names) - 4].text
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert {event.item_id for event in deltas} == {final.output[0].id}
    assert events[0].response.id == final.id
    assert events[0].response.output == []


def test_the_packages_own_stream_reads_it(client: openai.OpenAI) -> None:
    with client.responses.stream(model=MODEL, input=asked(), temperature=0) as stream:
        said = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert final.output_text == "".join(said) == CLOCK.answer


def test_an_answer_that_was_cut_is_incomplete(client: openai.OpenAI) -> None:
    options = {
        "model": MODEL,
        "input": asked("Describe the image."),
        "temperature": 0,
        "max_output_tokens": 2,
    }
    whole = client.responses.create(**options)
    with client.responses.create(**options, stream=True) as stream:
        event = list(stream)[-1]
    assert event.type == "response.incomplete"
    for response in (whole, event.response):
        assert response.status == "incomplete"
        assert response.incomplete_details.reason == "max_output_tokens"
        assert response.usage.output_tokens == 2
        assert response.output[0].status == "incomplete"


class Clock(pydantic.BaseModel):
    """What is seen of one."""

    kind: Literal["digital", "analog"]
    hour: int = pydantic.Field(ge=1, le=12)


def test_an_answer_is_parsed_into_a_class(client: openai.OpenAI) -> None:
    parsed = client.responses.parse(model=MODEL, input=asked(), text_format=Clock, temperature=0)
    assert isinstance(parsed.output_parsed, Clock)
    assert parsed.text.format.type == "json_schema"
    with client.responses.stream(model=MODEL, input=asked(), text_format=Clock, temperature=0) as stream:
        assert stream.get_final_response().output_parsed == parsed.output_parsed


def test_an_answer_is_any_json_object(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model=MODEL,
        input=asked("Describe the image in JSON."),
        text={"format": {"type": "json_object"}},
        temperature=0,
        max_output_tokens=40,
    )
    assert response.output_text.startswith("{")


def test_probabilities_are_included_on_request(client: openai.OpenAI) -> None:
    options = {
        "model": MODEL,
        "input": asked(),
        "temperature": 0,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
    }
    whole = client.responses.create(**options)
    probs = whole.output[0].content[0].logprobs
    assert len(probs) == whole.usage.output_tokens
    assert all(len(token.top_logprobs) == 2 for token in probs)
    assert b"".join(bytes(token.bytes) for token in probs).decode().strip() == whole.output_text
    with client.responses.create(**options, stream=True) as stream:
        told = [token for event in stream if event.type.endswith("text.delta") for token in event.logprobs]
    assert [token.token for token in told] == [token.token for token in probs]


def test_fields_of_this_project_are_taken(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model=MODEL,
        input=asked(),
        temperature=0,
        extra_body={"fastv": "k=2,drop=0.75", "fastv_details": True},
    )
    assert response.usage.visual_tokens_kept == 144
    assert response.fastv_details["fastv"].startswith("k=2,drop=0.75")
    assert response.timings["predicted_n"] == response.usage.output_tokens


def test_tokens_of_a_request_are_counted(client: openai.OpenAI) -> None:
    response = client.responses.create(model=MODEL, input=asked(), max_output_tokens=1)
    counted = client.responses.input_tokens.count(model=MODEL, input=asked())
    assert counted.input_tokens == response.usage.input_tokens


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"background": True}, "background"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tool_choice": {"type": "allowed_tools", "tools": []}}, "tool_choice"),
        ({"n": 2}, "n"),
        ({"mirostat": 2}, "mirostat"),
        ({"top_k": "many"}, "top_k"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file_1"}]}]},
            "input.0.content.0",
        ),
        (
            {
                "input": [
                    {"role": "system", "content": "Look."},
                    {
                        "role": "user",
                        "content": [
                            {"type": "input_text", "text": "What is it?"},
                            {"type": "input_image", "image_url": "data:image/png,hello"},
                        ],
                    },
                ],
                "instructions": "Be brief.",
            },
            None,
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "/etc/passwd"}]}]},
            "input.0.content.0",
        ),
    ],
    ids=lambda value: "" if not isinstance(value, dict) else next(iter(value)),
)
def test_what_is_not_there_is_refused_by_name(
    client: openai.OpenAI, fields: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input="Hello", extra_body=fields)
    if param is not None:
        assert caught.value.param == param
    assert caught.value.message


# three different booleans: what a grammar cannot say is looked for afterwards, and never there
NEVER = {"type": "array", "items": {"type": "boolean"}, "minItems": 3, "maxItems": 3, "uniqueItems": True}


def test_what_goes_wrong_in_a_stream_is_its_last_event(client: openai.OpenAI) -> None:
    text = {"format": {"type": "json_schema", "name": "never", "schema": NEVER}}
    options = {"model": MODEL, "input": "Say it.", "temperature": 0, "text": text}
    with client.responses.create(**options, stream=True) as stream:
        events = list(stream)
    assert events[-1].type == "response.failed"
    assert events[-1].response.status == "failed"
    assert "schema" in events[-1].response.error.message
    assert [event.sequence_number for event in events] == list(range(len(events)))
    with pytest.raises(openai.InternalServerError, match="schema"):
        client.responses.create(**options)


def test_a_client_that_leaves_frees_its_slot(server: Server) -> None:
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 400}
    text = {"format": {"type": "json_schema", "name": "many", "schema": schema}}
    for stream in (False, True):
        connection = send(server, {"input": "Go on.", "text": text, "stream": stream}, PATH)
        wait_for(lambda: health(server)["active"] == 1)
        connection.close()
        wait_for(lambda: health(server)["active"] == 0, 5.0)


# the translation


def messages(**fields: Any) -> list[dict[str, Any]]:
    chat = ResponseRequest.model_validate(fields).chat()
    return [message.model_dump(exclude_none=True) for message in chat.messages]


def text(words: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": words}]


def test_items_of_an_agent_become_messages() -> None:
    items = [
        {"role": "user", "content": "Look."},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Hm."}],
        },
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "I look.", "annotations": []}],
        },
        {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "see", "arguments": '{"at": 1}'},
        {"type": "function_call", "call_id": "call_2", "name": "see", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "a clock"},
        {
            "type": "function_call_output",
            "call_id": "call_2",
            "output": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}],
        },
        {"role": "assistant", "content": "A clock."},
        {"role": "developer", "content": "Go on."},
    ]
    calls = [
        {"id": "call_1", "type": "function", "function": {"name": "see", "arguments": '{"at": 1}'}},
        {"id": "call_2", "type": "function", "function": {"name": "see", "arguments": "{}"}},
    ]
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    assert messages(input=items, instructions="Be kind.") == [
        {"role": "system", "content": text("Be kind.")},
        {"role": "user", "content": text("Look.")},
        {"role": "assistant", "content": text("I look."), "reasoning_content": "Hm.", "tool_calls": calls},
        {"role": "tool", "content": text("a clock"), "tool_call_id": "call_1"},
        {"role": "tool", "content": [picture], "tool_call_id": "call_2"},
        {"role": "assistant", "content": text("A clock.")},
        {"role": "developer", "content": text("Go on.")},
    ]


def test_functions_have_the_form_that_chats_have_for_them() -> None:
    parameters = {"type": "object", "properties": {}}
    tool = {
        "type": "function",
        "name": "see",
        "description": "Look.",
        "parameters": parameters,
        "strict": True,
    }
    chat = ResponseRequest.model_validate(
        {"input": "x", "tools": [tool], "tool_choice": {"type": "function", "name": "see"}}
    ).chat()
    function = {"name": "see", "description": "Look.", "parameters": parameters, "strict": True}
    assert chat.tools == [{"type": "function", "function": function}]
    assert chat.tool_choice == {"type": "function", "function": {"name": "see"}}


USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 7,
    "total_tokens": 12,
    "prompt_tokens_details": {"cached_tokens": 1},
}
CALLS = [
    {"index": 0, "id": "call_1", "type": "function", "function": {"name": "see", "arguments": '{"at": 1}'}},
    {"index": 1, "id": "call_2", "type": "function", "function": {"name": "hear", "arguments": "{}"}},
]


def telling() -> ResponseTelling:
    request = ResponseRequest.model_validate({"input": "x"})
    return ResponseTelling(request.echo(), "m", lambda text: len(text.split()))


def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]}


def events(data: str) -> list[dict[str, Any]]:
    found = [block.split("\n") for block in data.split("\n\n") if block]
    told = [json.loads(lines[1].removeprefix("data: ")) for lines in found]
    assert [lines[0] for lines in found] == [f"event: {event['type']}" for event in told]
    return told


def test_thoughts_and_calls_are_items() -> None:
    message = {"role": "assistant", "reasoning_content": "Well well.", "content": "So.", "tool_calls": CALLS}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls"}
    whole = telling().whole({"choices": [choice], "usage": USAGE})

    told = telling()
    head, *rest = CALLS[0]["function"]["arguments"], CALLS[1]
    begun = {**CALLS[0], "function": {"name": "see", "arguments": ""}}
    chunks = [
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning_content": "Well "}),
        chunk({"reasoning_content": "well."}),
        chunk({"content": "So."}),
        chunk({"tool_calls": [begun]}),
        *(
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": part}}]})
            for part in (head[:3], head[3:])
        ),
        chunk({"tool_calls": rest}),
        chunk({}, "tool_calls"),
        {"choices": [], "usage": USAGE},
    ]
    found = events("".join(map(told.chunk, chunks)) + told.end())
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    assert found[-1]["type"] == "response.completed"
    for response in (whole, found[-1]["response"]):
        thought, said, first, second = response["output"]
        assert (thought["type"], thought["summary"]) == (
            "reasoning",
            [{"type": "summary_text", "text": "Well well."}],
        )
        assert said["content"][0]["text"] == "So."
        assert (first["type"], first["call_id"], first["name"]) == ("function_call", "call_1", "see")
        assert (first["arguments"], second["arguments"]) == ('{"at": 1}', "{}")
        assert (second["call_id"], second["name"]) == ("call_2", "hear")
        assert all(item["status"] == "completed" for item in response["output"])
        assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}
        assert response["usage"]["input_tokens_details"] == {"cached_tokens": 1}
    assert [event["type"].removeprefix("response.") for event in found[2:9]] == [
        *("output_item.added", "reasoning_summary_part.added", *["reasoning_summary_text.delta"] * 2),
        *("reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done"),
    ]
    deltas = [event for event in found if event["type"] == "response.function_call_arguments.delta"]
    assert [event["output_index"] for event in deltas] == [2, 2, 3]
    done = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    assert done == found[-1]["response"]["output"]


def test_an_empty_answer_is_a_message_without_text() -> None:
    message = {"role": "assistant", "content": ""}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}
    whole = telling().whole({"choices": [choice], "usage": USAGE})
    told = telling()
    streamed = events("".join(map(told.chunk, [chunk({}, "length"), {"choices": [], "usage": USAGE}])))
    for response in (whole, streamed[-1]["response"]):
        [item] = response["output"]
        assert item["content"][0]["text"] == ""
        assert response["status"] == "incomplete"
