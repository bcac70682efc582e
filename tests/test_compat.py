"""docs/compat.md, row by row, against a server of the bundled model: what is honoured is answered, and refused by name
where it makes no sense; what is taken is answered; what is refused is refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from serving import CLOCK, Server, data_uri, question

PAGE = (Path(__file__).parents[1] / "docs" / "compat.md").read_text("utf-8")
NONSENSE = [[[]]]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
PICTURE = data_uri(CLOCK.picture)
BASE64 = PICTURE.partition(",")[2]


class Row(NamedTuple):
    endpoint: str
    field: str
    here: str


def rows() -> Iterator[Row]:
    for heading, body in re.findall(r"^## `(POST \S+)`\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S):
        for field, here in re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", body, re.M):
            yield Row(heading, field, here)


def addresses() -> Iterator[Row]:
    for cell, here in re.findall(r"^\| (`GET [^|]+) \| ([^|]+) \|", PAGE, re.M):
        yield from (Row(address, "", here) for address in re.findall(r"`([^`]+)`", cell))


ROWS, ADDRESSES = list(rows()), list(addresses())

# requests that are answered as they are, fast
HELLO = {"role": "user", "content": "Hello"}
BASES: dict[str, dict[str, Any]] = {
    "POST /v1/chat/completions": {"messages": [HELLO], "max_tokens": 2},
    "POST /v1/completions": {"prompt": "The clock", "max_tokens": 2},
    "POST /tokenize": {"content": "Hello"},
    "POST /detokenize": {"tokens": [5, 6]},
    "POST /apply-template": {"messages": [HELLO]},
    "POST /completion": {"prompt": "The clock", "n_predict": 2},
    "POST /api/chat": {"messages": [HELLO], "stream": False, "options": {"num_predict": 2}},
    "POST /api/generate": {"prompt": "Hello", "stream": False, "options": {"num_predict": 2}},
    "POST /api/show": {"model": "any"},
    "POST /v1/responses": {"input": "Hello", "max_output_tokens": 16},
    "POST /v1/messages": {"messages": [HELLO], "max_tokens": 2},
}


class Sent(NamedTuple):
    """What a row is tried with: fields that make sense, and, where it is not [[[]]] in the field, some that make none."""

    sense: dict[str, Any]
    nonsense: dict[str, Any] | None = None


def in_message(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content, **more}]}


def shown_with(detail: str) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": PICTURE, "detail": detail}}
    return {"role": "user", "content": [part, {"type": "text", "text": "Read the clock."}]}


_CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
_CALLED = {"role": "assistant", "content": None, "tool_calls": [_CALL]}
_RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "a clock"}

CHAT = {
    "messages": Sent({"messages": [{"role": "system", "content": "Be brief."}, HELLO]}),
    "messages: image_url": Sent(
        {"messages": [question("Read the clock.", PICTURE)]},
        {"messages": [question("Read the clock.", "data:image/png;base64,AAAA")]},
    ),
    "messages: image_url.detail": Sent(
        {"messages": [shown_with("low")]},
        {"messages": [shown_with("tiny")]},
    ),
    "messages: role tool": Sent(
        {"messages": [HELLO, _CALLED, _RESULT]}, {"messages": [HELLO, {**_RESULT, "content": 5}]}
    ),
    "messages: tool_calls": Sent(
        {"messages": [HELLO, _CALLED, _RESULT, HELLO]},
        {"messages": [HELLO, {**_CALLED, "tool_calls": 5}]},
    ),
    "model": Sent({"model": "any"}),
    "stream": Sent({"stream": True}),
    "stream_options": Sent({"stream": True, "stream_options": {"include_usage": True}}),
    "max_tokens": Sent({"max_tokens": 1}),
    "max_completion_tokens": Sent({"max_completion_tokens": 1}),
    "temperature": Sent({"temperature": 0.5}),
    "top_p": Sent({"top_p": 0.9}),
    "n": Sent({"n": 2}),
    "stop": Sent({"stop": ["."]}),
    "seed": Sent({"seed": 7}),
    "presence_penalty": Sent({"presence_penalty": 0.5}),
    "frequency_penalty": Sent({"frequency_penalty": 0.5}),
    "logit_bias": Sent({"logit_bias": {"5": -100}}),
    "logprobs": Sent({"logprobs": True}),
    "top_logprobs": Sent({"logprobs": True, "top_logprobs": 2}),
    "response_format": Sent(
        {
            "max_tokens": 20,
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
        }
    ),
    "reasoning_effort": Sent({"reasoning_effort": "low"}),
    "tools": Sent({"tools": [TOOL]}),
    "tool_choice": Sent({"tools": [TOOL], "tool_choice": "required", "max_tokens": 30}),
    "functions": Sent({"functions": [TOOL["function"]]}),
    "audio": Sent({"audio": {"voice": "alloy", "format": "wav"}}),
    "modalities": Sent({"modalities": ["text"]}, {"modalities": ["text", "audio"]}),
    "web_search_options": Sent({"web_search_options": {"search_context_size": "low"}}),
    "user": Sent({"user": "somebody"}),
    "metadata": Sent({"metadata": {"a": "b"}}),
    "store": Sent({"store": True}),
    "service_tier": Sent({"service_tier": "auto"}),
    "parallel_tool_calls": Sent({"tools": [TOOL], "parallel_tool_calls": False}),
    "top_k": Sent({"top_k": 5}),
    "min_p": Sent({"min_p": 0.1}),
    "typical_p": Sent({"typical_p": 0.9}),
    "repeat_penalty": Sent({"repeat_penalty": 1.1}),
    "repetition_penalty": Sent({"repetition_penalty": 1.1}),
    "repeat_last_n": Sent({"repeat_last_n": 32}),
    "n_predict": Sent({"n_predict": 1}),
    "ignore_eos": Sent({"ignore_eos": True}),
    "grammar": Sent({"grammar": 'root ::= "a"'}),
    "json_schema": Sent({"json_schema": {"type": "boolean"}}),
    "guided_json": Sent({"guided_json": {"type": "boolean"}}),
    "guided_choice": Sent({"guided_choice": ["a", "b"]}),
    "guided_regex": Sent({"guided_regex": "[ab]"}),
    "guided_grammar": Sent({"guided_grammar": 'root ::= "a"'}),
    "structured_outputs": Sent({"structured_outputs": {"choice": ["a", "b"]}}),
    "chat_template_kwargs": Sent({"chat_template_kwargs": {"enable_thinking": False}}),
    "reasoning_format": Sent({"reasoning_format": "none"}),
    "continue_final_message": Sent(
        {"messages": [HELLO, {"role": "assistant", "content": "It is"}], "continue_final_message": True}
    ),
    "add_generation_prompt": Sent(
        {
            "messages": [HELLO, {"role": "assistant", "content": "It is"}],
            "continue_final_message": True,
            "add_generation_prompt": False,
        }
    ),
    "return_progress": Sent({"stream": True, "return_progress": True}),
    "timings_per_token": Sent({"timings_per_token": True}),
    "cache_prompt": Sent({"cache_prompt": False}),
    "id_slot": Sent({"id_slot": 0}),
    "mirostat": Sent({"mirostat": 2}),
    "dry_multiplier": Sent({"dry_multiplier": 0.8}),
    "xtc_probability": Sent({"xtc_probability": 0.5}),
    "min_tokens": Sent({"min_tokens": 1}),
    "stop_token_ids": Sent({"stop_token_ids": [5]}),
    "bad_words": Sent({"bad_words": ["clock"]}),
    "use_beam_search": Sent({"use_beam_search": True}),
    "skip_special_tokens": Sent({"skip_special_tokens": False}),
    "max_new_tokens": Sent({"max_new_tokens": 5}),
    "fastv": Sent({"fastv": "k=2,drop=0.75"}),
    "turbo": Sent({"turbo": "share=0.5"}),
    "skip": Sent({"skip": "tau=4"}),
    "reduce": Sent({"reduce": "pool,window=2"}),
    "image_tokens": Sent({"image_tokens": 600}),
    "image_min_tokens": Sent({"image_min_tokens": 64}),
    "image_max_tokens": Sent({"image_max_tokens": 600}),
    "enlarge": Sent({"enlarge": False}),
    "fastv_details": Sent({"fastv_details": True}),
}
EXAMPLES: dict[str, dict[str, Sent]] = {
    "POST /v1/chat/completions": CHAT,
    "POST /v1/completions": {
        "prompt": Sent({"prompt": ["The clock", [5, 6]]}),
        "logprobs": Sent({"logprobs": 1}),
        "best_of": Sent({"n": 2, "best_of": 2}),
        "echo": Sent({"echo": True}),
        "suffix": Sent({"suffix": "."}),
    },
    "POST /tokenize": {
        "content": Sent({"content": "a"}),
        "add_special": Sent({"add_special": True}),
        "parse_special": Sent({"parse_special": False}),
        "with_pieces": Sent({"with_pieces": True}),
    },
    "POST /detokenize": {"tokens": Sent({"tokens": [5]})},
    "POST /apply-template": {"messages": Sent({"messages": [HELLO]})},
    "POST /completion": {"prompt": Sent({"prompt": "A"}), "n_predict": Sent({"n_predict": 1})},
    "POST /api/chat": {
        "messages": Sent({"messages": [{"role": "system", "content": "Be brief."}, HELLO]}),
        "messages: images": Sent(
            in_message("Read the clock.", images=[BASE64]), in_message("Read the clock.", images=["@@@"])
        ),
        "model": Sent({"model": "any"}),
        "stream": Sent({"stream": True}),
        "format": Sent({"format": {"type": "boolean"}}),
        "options: num_predict": Sent({"options": {"num_predict": 1}}, {"options": {"num_predict": NONSENSE}}),
        "options: temperature": Sent(
            {"options": {"num_predict": 1, "temperature": 0.5}}, {"options": {"temperature": NONSENSE}}
        ),
        "options: num_ctx": Sent({"options": {"num_predict": 1, "num_ctx": 2048}}),
        "think": Sent({"think": False}),
        "keep_alive": Sent({"keep_alive": 5}),
    },
    "POST /api/generate": {
        "prompt": Sent({"prompt": "A"}),
        "images": Sent({"images": [BASE64]}, {"images": ["@@@"]}),
        "system": Sent({"system": "Be brief."}),
        "format": Sent({"format": {"type": "boolean"}}),
        "model": Sent({"model": "any"}),
        "stream": Sent({"stream": True}),
    },
    "POST /api/show": {"model": Sent({"model": "any"})},
    "POST /v1/responses": {
        "input": Sent({"input": [HELLO]}),
        "input: input_image": Sent(
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": PICTURE}]}]},
            {
                "input": [
                    {
                        "role": "user",
                        "content": [{"type": "input_image", "image_url": "data:image/png;base64,@@@"}],
                    }
                ]
            },
        ),
        "instructions": Sent({"instructions": "Be brief."}),
        "model": Sent({"model": "any"}),
        "max_output_tokens": Sent({"max_output_tokens": 16}),
        "temperature": Sent({"temperature": 0.5}),
        "text": Sent(
            {"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "boolean"}}}}
        ),
        "stream": Sent({"stream": True}),
    },
    "POST /v1/messages": {
        "messages": Sent({"messages": [HELLO, {"role": "assistant", "content": "Hello."}, HELLO]}),
        "messages: image": Sent(
            in_message(
                [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BASE64}}]
            ),
            in_message(
                [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "@@@"}}]
            ),
        ),
        "system": Sent({"system": "Be brief."}),
        "model": Sent({"model": "any"}),
        "max_tokens": Sent({"max_tokens": 1}),
        "temperature": Sent({"temperature": 0.5}),
        "stop_sequences": Sent({"stop_sequences": ["."]}),
        "stream": Sent({"stream": True}),
    },
}


def named(row: Row) -> str:
    return f"{row.endpoint} {row.field}"


def test_every_row_has_an_example_and_every_example_a_row() -> None:
    assert [(row.endpoint, row.field) for row in ROWS] == [
        (endpoint, field) for endpoint, fields in EXAMPLES.items() for field in fields
    ]
    assert set(BASES) == set(EXAMPLES)
    assert {row.here for row in [*ROWS, *ADDRESSES]} == {"honoured", "taken", "refused"}


def send(server: Server, row: Row, fields: dict[str, Any]) -> tuple[int, bytes]:
    method, path = row.endpoint.split()
    status, _, data = server.request(method, path, {**BASES[row.endpoint], **fields})
    return status, data


def refused_by_name(row: Row, status: int, data: bytes) -> bool:
    """A protocol has a form of its own for errors; all name the field."""
    return status == 400 and row.field.partition(":")[0] in json.dumps(json.loads(data)["error"])


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_a_field_is_what_the_page_says(server: Server, row: Row) -> None:
    sent = EXAMPLES[row.endpoint][row.field]
    status, data = send(server, row, sent.sense)
    if row.here == "refused":
        assert refused_by_name(row, status, data), data
        return
    assert status == 200, data
    if row.here == "honoured":
        nonsense = {**sent.sense, **(sent.nonsense or {row.field: NONSENSE})}
        status, data = send(server, row, nonsense)
        assert refused_by_name(row, status, data), data


@pytest.mark.parametrize("row", ADDRESSES, ids=lambda row: row.endpoint)
def test_an_address_is_what_the_page_says(server: Server, row: Row) -> None:
    method, path = row.endpoint.split()
    status, _, data = server.request(method, path)
    assert status == 200, data
    assert data
