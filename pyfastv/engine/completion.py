"""Answers in the shape of OpenAI's chat completions, as llama-cpp-python returns them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from ..constraints.calls import Told
from .answer import Answer
from .pieces import chat_logprobs
from .stream import Stream
from .told import AnswerReader, as_delta, as_message

if TYPE_CHECKING:
    from ..types import ChatCompletion, ChatCompletionChunk

__all__ = ["chunks", "whole"]


def whole(answer: Answer, model: str, reader: AnswerReader | None = None) -> ChatCompletion:
    """A ``chat.completion``; beside OpenAI's keys ``pyfastv``, the report. ``reader``: that tells its calls."""
    report = answer.report
    told = Told(answer.text) if reader is None else reader.feed(answer.text) + reader.finish()
    made = {
        **_head("chat.completion", model),
        "choices": [
            {
                "index": 0,
                "message": as_message(told),
                "logprobs": None if answer.logprobs is None else chat_logprobs(answer.logprobs),
                "finish_reason": answer.finish_reason
                if reader is None
                else reader.reason(answer.finish_reason),
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

    def chunk(delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> ChatCompletionChunk:
        nonlocal told
        probs = (stream.logprobs or ())[told:]
        told += len(probs)
        logprobs = chat_logprobs(probs) if probs else None
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return cast("ChatCompletionChunk", {**head, "choices": [choice], **more})

    yield chunk({"role": "assistant"})
    reader = stream.told_by
    for piece in stream:
        delta = {"content": piece} if reader is None else as_delta(reader.feed(piece))
        if delta:
            yield chunk(delta)
    rest, reason = {}, stream.answer.finish_reason
    if reader is not None:
        rest, reason = as_delta(reader.finish()), reader.reason(reason)
    yield chunk(rest, reason, pyfastv=stream.report.to_dict())


def _head(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4()}", "object": kind, "created": int(time.time()), "model": model}
