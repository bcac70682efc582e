"""OpenAI's responses: their requests, which become those of chat completions. Nothing is stored: each brings the whole
conversation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BeforeValidator, Field
from starlette.responses import JSONResponse, Response

from .chat import (
    ChatRequest,
    Detail,
    Effort,
    Fps,
    Frames,
    ImageAddress,
    ImagePart,
    ImageUrl,
    Part,
    TextPart,
    VideoAddress,
    VideoPart,
)
from .chats import Chats, Foreign
from .errors import invalid
from .model import Model
from .response_events import ResponseTelling

__all__ = ["ResponseRequest", "add_routes"]

_LOGPROBS = "message.output_text.logprobs"


class InputText(Model):
    """Text of a message, the assistant's, too."""

    type: Literal["input_text", "output_text", "text"]
    text: str


class Refusal(Model):
    """What an earlier answer refused with."""

    type: Literal["refusal"]
    refusal: str


class InputImage(Model):
    """A picture of a message or of a function's result."""

    type: Literal["input_image"]
    image_url: ImageAddress | None = None
    detail: Detail | None = None
    file_id: Any = Field(default=None, description="Not supported.")


class InputVideo(Model):
    """A video of a message; see :class:`pyfastv.serve.chat.VideoPart`."""

    type: Literal["input_video"]
    video_url: VideoAddress
    frames: Frames | None = None
    fps: Fps | None = None


Content = Annotated[InputText | Refusal | InputImage | InputVideo, Field(discriminator="type")]


def _as_content(value: Any) -> Any:
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else value


Contents = Annotated[list[Content], BeforeValidator(_as_content, json_schema_input_type=str | list[Content])]


class MessageItem(Model):
    """A message; those of the assistant are earlier answers."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Contents


class FunctionCallItem(Model):
    """A call of an earlier answer."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class FunctionOutputItem(Model):
    """What a function gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: Contents


class Thought(Model):
    """A part of a thought."""

    text: str


class ReasoningItem(Model):
    """The thought of an earlier answer."""

    type: Literal["reasoning"]
    content: list[Thought] | None = None
    summary: list[Thought] | None = None

    @property
    def text(self) -> str:
        return "\n\n".join(thought.text for thought in self.content or self.summary or [])


Item = Annotated[
    MessageItem | FunctionCallItem | FunctionOutputItem | ReasoningItem, Field(discriminator="type")
]


def _as_items(value: Any) -> Any:
    """A text is a message of the user, and what has a role a message."""
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list):
        return value
    return [
        {"type": "message", **item} if isinstance(item, dict) and "role" in item else item for item in value
    ]


class TextFormat(Model):
    """``text.format``: any text, any JSON object, or JSON that follows a schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class TextConfig(Model):
    """What the text of the answer looks like."""

    format: TextFormat | None = None
    verbosity: str | None = Field(default=None, description="Only medium.")


class Reasoning(Model):
    """How much the model thinks; what it thought comes whole, in the place of a summary, whatever kind is asked for."""

    effort: Effort | None = None
    summary: str | None = None


class ResponseRequest(Foreign):
    """``POST /v1/responses``"""

    model: str | None = None
    input: Annotated[
        list[Item],
        Field(min_length=1),
        BeforeValidator(_as_items, json_schema_input_type=str | list[Item]),
    ]
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=-1)
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    include: list[str] | None = Field(
        default=None,
        description=f"{_LOGPROBS}; the others name what this server has not, or gives always.",
    )
    stream: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    store: bool | None = Field(default=None, description="Nothing is stored, whatever it says.")
    truncation: str | None = Field(
        default=None, description="What does not fit the context is refused, whatever it says."
    )
    previous_response_id: Any = Field(default=None, description="Not supported: nothing is stored.")
    conversation: Any = Field(default=None, description="Not supported: nothing is stored.")
    prompt: Any = Field(default=None, description="Not supported: nothing is stored.")
    background: bool | None = Field(default=None, description="Not supported.")

    def chat(self) -> ChatRequest:
        """What it is as a chat completion. Raises ApiError, RequestValidationError."""
        self.refuse(
            *("previous_response_id", "conversation", "prompt"),
            why="is not supported: this server stores nothing; send the whole conversation as input",
        )
        self.refuse("background")
        logprobs = _LOGPROBS in (self.include or []) or bool(self.top_logprobs)
        return self.as_chat(
            {
                "messages": list(self._messages()),
                "max_completion_tokens": self.max_output_tokens,
                "temperature": self.temperature,
                "top_p": self.top_p,
                "logprobs": logprobs,
                "top_logprobs": self.top_logprobs if logprobs else None,
                "stream": self.stream,
                "response_format": self._format(),
                "reasoning_effort": None if self.reasoning is None else self.reasoning.effort,
                "tools": None if self.tools is None else [_tool(*one) for one in enumerate(self.tools)],
                "tool_choice": _tool_choice(self.tool_choice),
                "parallel_tool_calls": self.parallel_tool_calls,
            }
        )

    def echo(self) -> dict[str, Any]:
        """What its answer says of it."""
        form = None if self.text is None else self.text.format
        told = {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_none=True)
        effort = None if self.reasoning is None else self.reasoning.effort
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "reasoning": {"effort": effort, "summary": None},
            "temperature": self.temperature,
            "text": {"format": told},
            "tool_choice": self.tool_choice or "auto",
            "tools": self.tools or [],
            "top_p": self.top_p,
            "user": self.user,
        }

    def _format(self) -> dict[str, Any] | None:
        if self.text is None:
            return None
        if self.text.verbosity not in (None, "medium"):
            raise invalid("text.verbosity is not supported: leave it out", "text.verbosity", "unsupported")
        form = self.text.format
        if form is None or form.type != "json_schema":
            return None if form is None else {"type": form.type}
        if form.schema_ is None:
            raise invalid("text.format: json_schema needs a schema", "text.format.schema")
        return {"type": "json_schema", "json_schema": {"name": form.name, "schema": form.schema_}}

    def _messages(self) -> Iterator[dict[str, Any]]:
        if self.instructions is not None:
            yield {"role": "system", "content": self.instructions}
        answer: dict[str, Any] = {}  # of neighbouring items
        for number, item in enumerate(self.input):
            where = f"input.{number}"
            if isinstance(item, MessageItem) and item.role == "assistant":
                if "content" in answer or "tool_calls" in answer:
                    yield answer
                    answer = {}
                answer |= {"role": "assistant", "content": _parts(item.content, f"{where}.content")}
            elif isinstance(item, ReasoningItem):
                if answer:
                    yield answer
                answer = {"role": "assistant", "reasoning_content": item.text}
            elif isinstance(item, FunctionCallItem):
                function = {"name": item.name, "arguments": item.arguments}
                answer |= {"role": "assistant"}
                answer.setdefault("tool_calls", []).append(
                    {"id": item.call_id, "type": "function", "function": function}
                )
            else:
                if answer:
                    yield answer
                    answer = {}
                if isinstance(item, MessageItem):
                    yield {"role": item.role, "content": _parts(item.content, f"{where}.content")}
                else:
                    parts = _parts(item.output, f"{where}.output")
                    yield {"role": "tool", "tool_call_id": item.call_id, "content": parts}
        if answer:
            yield answer


def _parts(contents: Sequence[Content], where: str) -> list[Part]:
    return [_part(content, f"{where}.{at}") for at, content in enumerate(contents)]


def _part(content: Content, where: str) -> Part:
    if isinstance(content, InputText):
        return TextPart(type="text", text=content.text)
    if isinstance(content, Refusal):
        return TextPart(type="text", text=content.refusal)
    part: ImagePart | VideoPart
    if isinstance(content, InputVideo):
        part = VideoPart(
            type="video_url", video_url=content.video_url, frames=content.frames, fps=content.fps
        )
    else:
        if content.file_id is not None or content.image_url is None:
            raise invalid(
                f"{where}: a picture needs an image_url; a file_id is not supported, this server stores nothing",
                where,
                "unsupported" if content.file_id is not None else None,
            )
        detail = content.image_url.detail or content.detail
        part = ImagePart(type="image_url", image_url=ImageUrl(url=content.image_url.url, detail=detail))
    part.at(where)
    return part


def _tool(number: int, tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise invalid(
            f"tools.{number}: the type {tool.get('type')!r:.100} is not supported by this server, only function",
            f"tools.{number}.type",
            "unsupported",
        )
    function = {name: value for name, value in tool.items() if name != "type" and value is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: str | dict[str, Any] | None) -> Any:
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") != "function":
        raise invalid(
            f"tool_choice: the type {choice.get('type')!r:.100} is not supported by this server",
            "tool_choice",
            "unsupported",
        )
    return {"type": "function", "function": {"name": choice.get("name")}}


_OK: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The response; with stream: true server-sent events.",
        "content": {"application/json": {}, "text/event-stream": {}},
    }
}


def add_routes(router: APIRouter, chats: Chats) -> None:
    """Adds them to the others."""

    @router.post("/v1/responses", tags=["responses"], response_class=JSONResponse, responses=_OK)
    async def create_response(body: ResponseRequest, request: Request) -> Response:
        """OpenAI's response; nothing is stored."""
        telling = ResponseTelling(body.echo(), chats.pool.name, chats.tokens_in)
        return await chats.answer(body.chat(), request, telling)

    @router.post("/v1/responses/input_tokens", tags=["responses"])
    async def count_input_tokens(body: ResponseRequest) -> dict[str, Any]:
        """Tokens of the prompt."""
        return {"object": "response.input_tokens", "input_tokens": await chats.count(body.chat())}
