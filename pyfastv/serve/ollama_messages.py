"""Ollama's messages as OpenAI's: pictures in the text, calls of functions without ids."""

from __future__ import annotations

from collections import deque
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from .chat import ChatMessage, TextPart, ToolCall
from .model import Model
from .pictures import bare_picture

__all__ = ["OllamaMessage", "as_chat", "conversation"]

_PLACE = "[img]"


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


class OllamaMessage(Model):
    """One message of a conversation."""

    role: Annotated[Literal["system", "developer", "user", "assistant", "tool"], BeforeValidator(_lower)]
    content: str | None = None
    images: list[str] | None = Field(default=None, description="In base64, or data URIs.")
    thinking: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    tool_name: str | None = None

    @property
    def placed(self) -> list[str | int]:
        """The texts of a message, and its pictures by their numbers: each where the next [img] is, without one in
        front."""
        n_pictures = len(self.images or ())
        texts = (self.content or "").split(_PLACE, n_pictures)
        parts: list[str | int] = [*range(len(texts) - 1, n_pictures), texts[0]]
        for number, more in enumerate(texts[1:]):
            parts += [number, more]
        return [part for part in parts if part != ""] or [""]


def as_chat(message: OllamaMessage) -> ChatMessage:
    """The same of OpenAI's."""
    images = message.images or []
    return ChatMessage(
        role=message.role,
        content=[
            TextPart(type="text", text=part) if isinstance(part, str) else bare_picture(images[part])
            for part in message.placed
        ],
        tool_calls=message.tool_calls,
        tool_call_id=message.tool_call_id,
        name=message.tool_name,
        reasoning_content=message.thinking,
    )


def conversation(messages: list[OllamaMessage]) -> list[ChatMessage]:
    """Calls and results without ids, as Ollama has them, belong together in their order; those of one function first."""
    told: list[ChatMessage] = []
    waiting: deque[ToolCall] = deque()
    for number, message in enumerate(messages):
        chat = as_chat(message)
        for at, call in enumerate(chat.tool_calls or ()):
            call.id = call.id or f"call{number % 1000:03d}{at % 100:02d}"  # what Mistral's templates take
            waiting.append(call)
        if chat.role == "tool":
            same = [call for call in waiting if chat.name in (None, call.function.name)]
            of = next((call for call in same if chat.tool_call_id in (None, call.id)), None)
            if of is not None:
                waiting.remove(of)
                chat.tool_call_id = chat.tool_call_id or of.id
        told.append(chat)
    return told
