"""Anthropic's messages: their requests, which become those of chat completions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BeforeValidator, Field
from starlette.responses import JSONResponse, Response

from .chat import ChatRequest, Effort, ImagePart, Part, TextPart
from .chats import Chats, Foreign
from .errors import FORMS, invalid
from .message_events import MessageTelling, error_form
from .model import Model

__all__ = ["CountRequest", "MessagesRequest", "add_routes"]

_PATH = "/v1/messages"


class TextBlock(Model):
    """Text of a message, or of the system's."""

    type: Literal["text"]
    text: str


class Base64Source(Model):
    """A picture in the request itself."""

    type: Literal["base64"]
    media_type: str
    data: str

    @property
    def address(self) -> str:
        return f"data:{self.media_type};base64,{self.data}"


class UrlSource(Model):
    """A picture elsewhere, by the rules for pictures of chat completions."""

    type: Literal["url"]
    url: str = Field(min_length=1)

    @property
    def address(self) -> str:
        return self.url


class ImageBlock(Model):
    """A picture."""

    type: Literal["image"]
    source: Annotated[Base64Source | UrlSource, Field(discriminator="type")]


class ToolUseBlock(Model):
    """A call of an earlier answer."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


def _as_blocks(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    return [] if value is None else value


Result = Annotated[TextBlock | ImageBlock, Field(discriminator="type")]


class ToolResultBlock(Model):
    """What a tool gave."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Annotated[
        list[Result], BeforeValidator(_as_blocks, json_schema_input_type=str | list[Result] | None)
    ] = Field(default_factory=list)
    is_error: bool | None = None


class ThinkingBlock(Model):
    """The thought of an earlier answer."""

    type: Literal["thinking"]
    thinking: str


Block = Annotated[
    TextBlock | ImageBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock, Field(discriminator="type")
]


class Message(Model):
    """One turn. The answer goes on with the last one, if it is the assistant's."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[list[Block], BeforeValidator(_as_blocks, json_schema_input_type=str | list[Block])]


class OutputFormat(Model):
    """The schema that the answer follows."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Model):
    """What the answer looks like, and how much is thought for it."""

    effort: Effort | Literal["max"] | None = None
    format: OutputFormat | None = None


class Thinking(Model):
    """Whether the model thinks first, if its template knows. A budget is no limit here: max_tokens is."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None


class ToolChoice(Model):
    """Whether tools may be called, have to be, or which."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class CountRequest(Foreign):
    """``POST /v1/messages/count_tokens``"""

    model: str | None = None
    messages: list[Message] = Field(min_length=1)
    system: Annotated[
        list[TextBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | list[TextBlock] | None)
    ] = Field(default_factory=list)
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = Field(
        default=None, description="output_config.format, as it was called."
    )
    container: Any = Field(default=None, description="Not supported.")
    mcp_servers: Any = Field(default=None, description="Not supported.")

    def chat(self) -> ChatRequest:
        """What it is as a chat completion. Raises ApiError, RequestValidationError."""
        self.refuse("container", "mcp_servers")
        return self.as_chat(self._fields())

    def _fields(self) -> dict[str, Any]:
        config = self.output_config or OutputConfig()
        form = config.format or self.output_format
        choice = self.tool_choice
        effort = "xhigh" if config.effort == "max" else config.effort
        thinks = None if self.thinking is None else self.thinking.type
        messages = [
            *self._system(),
            *(one for message in enumerate(self.messages) for one in _turns(*message)),
        ]
        return {
            "messages": messages,
            "continue_final_message": True if _is_begun(messages[-1]) else None,
            "tools": None if self.tools is None else [_tool(*one) for one in enumerate(self.tools)],
            "tool_choice": None if choice is None else _tool_choice(choice),
            "parallel_tool_calls": False if choice is not None and choice.disable_parallel_tool_use else None,
            "reasoning_effort": "none" if thinks == "disabled" else effort,
            "chat_template_kwargs": {"enable_thinking": True, "thinking": True}
            if thinks == "enabled"
            else None,
            "response_format": None
            if form is None
            else {"type": "json_schema", "json_schema": {"schema": form.schema_}},
        }

    def _system(self) -> Iterator[dict[str, Any]]:
        if self.system:
            yield {"role": "system", "content": "\n".join(block.text for block in self.system)}


class MessagesRequest(CountRequest):
    """``POST /v1/messages``"""

    max_tokens: int = Field(ge=0)
    stop_sequences: list[str] | None = None
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_k: int | None = Field(default=None, ge=-1)
    top_p: float | None = Field(default=None, ge=0, le=1)
    stream: bool | None = None

    def _fields(self) -> dict[str, Any]:
        sampling = {name: getattr(self, name) for name in ("temperature", "top_k", "top_p", "stream")}
        return {
            **super()._fields(),
            "max_completion_tokens": self.max_tokens,
            "stop": self.stop_sequences,
            **sampling,
        }


def _turns(number: int, message: Message) -> Iterator[dict[str, Any]]:
    """A message as those of a chat: results of tools are messages there."""
    turn: dict[str, Any] = {"role": message.role, "content": []}
    for at, block in enumerate(message.content):
        where = f"messages.{number}.content.{at}"
        if isinstance(block, ToolResultBlock):
            if turn["content"]:
                yield turn
                turn = {"role": message.role, "content": []}
            told: list[Part] = [TextPart(type="text", text="Error:")] if block.is_error else []
            told += [_part(one, f"{where}.content.{i}") for i, one in enumerate(block.content)]
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": told}
        elif isinstance(block, ToolUseBlock):
            function = {"name": block.name, "arguments": block.input}
            turn.setdefault("tool_calls", []).append(
                {"id": block.id, "type": "function", "function": function}
            )
        elif isinstance(block, ThinkingBlock):
            turn["reasoning_content"] = f"{turn.get('reasoning_content', '')}{block.thinking}"
        else:
            turn["content"].append(_part(block, where))
    results = any(isinstance(block, ToolResultBlock) for block in message.content)
    if turn["content"] or len(turn) > 2 or not results:
        yield turn


def _part(block: TextBlock | ImageBlock, where: str) -> Part:
    if isinstance(block, TextBlock):
        return TextPart(type="text", text=block.text)
    part = ImagePart.model_validate({"type": "image_url", "image_url": block.source.address})
    part.at(where)
    return part


def _is_begun(turn: dict[str, Any]) -> bool:
    """Is it an answer that goes on?"""
    return turn["role"] == "assistant" and "tool_calls" not in turn


def _tool(number: int, tool: dict[str, Any]) -> dict[str, Any]:
    kind = tool.get("type")
    if kind not in (None, "custom"):
        raise invalid(
            f"tools.{number}: the type {kind!r:.100} is not supported by this server, only tools with an input_schema",
            f"tools.{number}.type",
            "unsupported",
        )
    function = {"name": tool.get("name"), "parameters": tool.get("input_schema")}
    if tool.get("description") is not None:
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


def _tool_choice(choice: ToolChoice) -> Any:
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    return "required" if choice.type == "any" else choice.type


FORMS[_PATH] = error_form

_ERROR: dict[str, Any] = {
    "description": "Anthropic's error object.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["type", "error"],
                "properties": {
                    "type": {"const": "error"},
                    "error": {
                        "type": "object",
                        "required": ["type", "message"],
                        "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
                    },
                },
            }
        }
    },
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: _ERROR for status in (400, 401, 404, 408, 413, 415, 421, 429, 500, 503)
}
_OK: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The message; with stream: true server-sent events.",
        "content": {"application/json": {}, "text/event-stream": {}},
    }
}


def add_routes(router: APIRouter, chats: Chats) -> None:
    """Adds them to the others."""

    @router.post(_PATH, tags=["messages"], response_class=JSONResponse, responses={**_ERRORS, **_OK})
    async def create_message(body: MessagesRequest, request: Request) -> Response:
        """Anthropic's message."""
        return await chats.answer(body.chat(), request, MessageTelling(chats.pool.name))

    @router.post(f"{_PATH}/count_tokens", tags=["messages"], responses=_ERRORS)
    async def count_tokens(body: CountRequest) -> dict[str, int]:
        """Tokens of the prompt, pictures included."""
        return {"input_tokens": await chats.count(body.chat())}
