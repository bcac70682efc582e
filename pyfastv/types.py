"""Typed dictionaries of chat completions: what :meth:`pyfastv.Runner.create_chat_completion` takes and gives.

    from pyfastv.types import ChatMessage

    messages: list[ChatMessage] = [{"role": "user", "content": "What can you see?"}]

They are plain dictionaries, in OpenAI's shape; the types are for editors and checkers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict

__all__ = [
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatMessage",
    "Choice",
    "ChoiceLogprobs",
    "ChunkChoice",
    "ContentPart",
    "Delta",
    "FinishReason",
    "ImagePart",
    "ImageUrl",
    "ImageUrlPart",
    "Messages",
    "ResponseMessage",
    "TextPart",
    "TokenLogprob",
    "Usage",
]

FinishReason: TypeAlias = Literal["stop", "length"]


# what it takes


class TextPart(TypedDict):
    """Text of a message."""

    type: Literal["text"]
    text: str


class ImageDetail(TypedDict, total=False):
    """How large a picture is seen."""

    detail: Literal["low", "high", "auto", "original"]
    """"low": at most 256 visual tokens, or as few as the model can have."""


class ImageUrl(ImageDetail):
    """Where a picture is."""

    url: str
    """A path, a data: or a file: URI."""


class ImageUrlPart(TypedDict):
    """A picture of a message, as OpenAI has it."""

    type: Literal["image_url"]
    image_url: str | ImageUrl


class ImagePart(TypedDict):
    """A picture of a message, whatever :func:`pyfastv.load_image` takes."""

    type: Literal["image"]
    image: Any


ContentPart: TypeAlias = TextPart | ImageUrlPart | ImagePart


class _Message(TypedDict):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]


class ChatMessage(_Message, total=False):
    """A message of a conversation."""

    content: str | Sequence[ContentPart] | None
    reasoning_content: str
    tool_calls: Sequence[Mapping[str, Any]]
    tool_call_id: str
    name: str


Messages: TypeAlias = Sequence[ChatMessage] | Sequence[Mapping[str, Any]]
"""A conversation."""


# what it gives


class _TopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(_TopLogprob):
    """How likely a token was; natural logarithms."""

    top_logprobs: list[_TopLogprob]


class ChoiceLogprobs(TypedDict):
    """Of the tokens of an answer, or of a piece of it."""

    content: list[TokenLogprob]
    refusal: None


class ResponseMessage(TypedDict):
    """The answer."""

    role: Literal["assistant"]
    content: str


class Choice(TypedDict):
    """The only one of a completion."""

    index: int
    message: ResponseMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason


class Usage(TypedDict):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class _Head(TypedDict):
    id: str
    created: int
    """Seconds since 1970."""
    model: str


class ChatCompletion(_Head):
    """An answer."""

    object: Literal["chat.completion"]
    choices: list[Choice]
    usage: Usage
    pyfastv: dict[str, Any]
    """:meth:`pyfastv.Report.to_dict`"""


class Delta(TypedDict, total=False):
    """The role in the first chunk, nothing in the last, else a piece of the answer."""

    role: Literal["assistant"]
    content: str


class ChunkChoice(TypedDict):
    """The only one of a chunk."""

    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason | None


class _Chunk(_Head):
    object: Literal["chat.completion.chunk"]
    choices: list[ChunkChoice]


class ChatCompletionChunk(_Chunk, total=False):
    """A piece of an answer."""

    pyfastv: dict[str, Any]
    """Of the last chunk: :meth:`pyfastv.Report.to_dict`"""
