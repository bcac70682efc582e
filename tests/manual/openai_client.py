"""The openai package: chat, a stream, structured output by ``parse``, tools, and the Responses API.

python tests/manual/openai_client.py [chat] [stream] [parse] [tools] [responses]
"""

from __future__ import annotations

import json
from typing import Any, Literal

from clients import ANSWER, CLOCK, QUESTION, Served, data_uri, main, openai_message


def _client(served: Served) -> Any:
    import openai

    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def chat(served: Served) -> None:
    with _client(served) as client:
        messages = [openai_message(QUESTION, CLOCK)]
        answer = client.chat.completions.create(model="pyfastv", messages=messages, temperature=0)
        served.check("chat", answer.choices[0].message.content, ANSWER)
        served.check("finish_reason", answer.choices[0].finish_reason, "stop")
        messages += [
            {"role": "assistant", "content": answer.choices[0].message.content},
            {"role": "user", "content": "Is the clock digital or analog?"},
        ]
        answer = client.chat.completions.create(model="pyfastv", messages=messages, temperature=0)
        served.check("second turn", answer.choices[0].message.content, lambda text: "analog" in text.lower())
        cached = answer.usage.prompt_tokens_details.cached_tokens
        served.check("its cached tokens", cached, lambda text: int(text) > 500)


def stream(served: Served) -> None:
    with _client(served) as client:
        pieces = client.chat.completions.create(
            model="pyfastv",
            messages=[openai_message(QUESTION, CLOCK)],
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(pieces)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    served.check("stream", text, ANSWER)
    served.check("usage of the stream", chunks[-1].usage.prompt_tokens, lambda tokens: int(tokens) > 576)


def parse(served: Served) -> None:
    from pydantic import BaseModel, Field

    class Clock(BaseModel):
        """What the picture shows."""

        kind: Literal["analog", "digital"] = Field(description="Of the clock.")
        hour: int = Field(ge=0, le=23)
        minute: int = Field(ge=0, le=59)

    with _client(served) as client:
        made = client.chat.completions.parse(
            model="pyfastv",
            messages=[openai_message(QUESTION, CLOCK)],
            temperature=0,
            response_format=Clock,
        )
    # the small model was not trained to fill in forms: what is checked is the form
    served.check("parse", made.choices[0].message.parsed, lambda text: "hour=" in text and "minute=" in text)


def tools(served: Served) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "set_clock",
            "description": "Sets a clock.",
            "parameters": {
                "type": "object",
                "properties": {"hour": {"type": "integer"}, "minute": {"type": "integer"}},
                "required": ["hour", "minute"],
            },
        },
    }
    with _client(served) as client:
        messages: list[dict[str, Any]] = [openai_message("Set it to the time of the picture.", CLOCK)]
        answer = client.chat.completions.create(
            model="pyfastv",
            messages=messages,
            tools=[tool],
            tool_choice={"type": "function", "function": {"name": "set_clock"}},
            temperature=0,
            max_tokens=100,
        )
        message = answer.choices[0].message
        [call] = message.tool_calls
        arguments = json.loads(call.function.arguments)
        served.check("tool call", call.function.name, "set_clock")
        served.check("its arguments", sorted(arguments), "['hour', 'minute']")
        messages += [
            message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "done"},
        ]
        answer = client.chat.completions.create(
            model="pyfastv", messages=messages, tools=[tool], tool_choice="none", max_tokens=20
        )
        served.check("behind the tool's result", answer.choices[0].finish_reason, lambda why: why != "error")


def responses(served: Served) -> None:
    content = [
        {"type": "input_image", "image_url": data_uri(CLOCK)},
        {"type": "input_text", "text": QUESTION},
    ]
    with _client(served) as client:
        asked = [{"role": "user", "content": content}]
        made = client.responses.create(model="pyfastv", input=asked, temperature=0)
        served.check("responses", made.output_text, ANSWER)
        with client.responses.stream(model="pyfastv", input=asked, temperature=0) as events:
            text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        served.check("responses, streamed", text, ANSWER)


PARTS = {"chat": chat, "stream": stream, "parse": parse, "tools": tools, "responses": responses}

if __name__ == "__main__":
    main(PARTS, ["openai"])
