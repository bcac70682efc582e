"""Answers in the shape of OpenAI's chat completions, as llama-cpp-python returns them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from .answer import Answer
from .pieces import chat_logprobs
from .stream import Stream

if TYPE_CHECKING:
    from ..types import ChatCompletion, ChatCompletionChunk

__all__ = ["chunks", "whole"]


def whole(answer: Answer, model: str) -> ChatCompletion:
    """A ``chat.completion``; beside OpenAI's keys ``pyfastv``, the report."""
    report = answer.report
    made = {
        **_head("chat.completion", model),
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": answer.text},
                "logprobs": None if answer.logprobs is None else chat_logprobs(answer.logprobs),
                "finish_reason": answer.finish_reason,
            }
        ],
        "usage": {
            "prompt_tokens": report.prompt_tokens,
            "completion_tokens": report.generated_tokens,
            "total_tokens": report.prompt_tokens + report.generated_tokens,
        },
        "pyfastv": report.to_dict(),
    }
    return cast("ChatCompletion", made)


def chunks(stream: Stream, model: str) -> Iterator[ChatCompletionChunk]:
    """``chat.completion.chunk`` objects: the role, the pieces, the finish reason together with the report."""
    head = _head("chat.completion.chunk", model)
    told = 0

    def chunk(delta: dict[str, str], finish_reason: str | None = None, **more: Any) -> ChatCompletionChunk:
        nonlocal told
        probs = (stream.logprobs or ())[told:]
        told += len(probs)
        logprobs = chat_logprobs(probs) if probs else None
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return cast("ChatCompletionChunk", {**head, "choices": [choice], **more})

    yield chunk({"role": "assistant"})
    for piece in stream:
        yield chunk({"content": piece})
    yield chunk({}, stream.answer.finish_reason, pyfastv=stream.report.to_dict())


def _head(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4()}", "object": kind, "created": int(time.time()), "model": model}
