"""Other protocols than OpenAI's chat completions: how their requests become those, and are answered by the same code."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ConfigDict, ValidationError
from starlette.responses import Response

from ..engine.job_pool import JobPool
from ..errors import ContextLengthError
from .answering import Telling
from .chat import ChatRequest
from .errors import invalid
from .model import Model

__all__ = ["Chats", "Foreign"]


@dataclass(frozen=True)
class Chats:
    """What answers them."""

    answer: Callable[[ChatRequest, Request, Telling], Awaitable[Response]]
    count: Callable[[ChatRequest], Awaitable[int]]
    """Tokens of a prompt."""
    pool: JobPool

    def tokens_in(self, text: str) -> int:
        """Of a part of an answer."""
        try:
            return len(self.pool.tokenize(text, parse_special=False))
        except ContextLengthError:
            return self.pool.n_ctx


class Foreign(Model):
    """A request of another protocol. Fields that it does not know are those of chat completions: of this project, and of
    other servers, which are looked through there."""

    model_config = ConfigDict(extra="allow")

    def as_chat(self, fields: Mapping[str, Any]) -> ChatRequest:
        """With the fields that its own have become. Raises ApiError, RequestValidationError."""
        others = {name: value for name, value in (self.model_extra or {}).items() if value is not None}
        if others.get("n", 1) != 1:
            raise invalid("n is not supported at this address: ask for one answer", "n", "unsupported")
        given = {name: value for name, value in fields.items() if value is not None}
        stream = {"stream": True, "stream_options": {"include_usage": True}} if given.get("stream") else {}
        try:
            return ChatRequest.model_validate({**others, **given, "stream_options": None, **stream})
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from None

    def refuse(self, *names: str, why: str = "is not supported by this server: leave it out") -> None:
        """Fields that would change the answer, if one is given. Raises ApiError."""
        for name in names:
            if getattr(self, name):
                raise invalid(f"{name} {why}", name, "unsupported")
