"""Answers in the shape of OpenAI's chat completions, as llama-cpp-python returns them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

from ..constraints.calls import Told
from .answer import Answer
from .stream import Stream
from .told import AnswerReader, as_delta, as_message

__all__ = ["chunks", "whole"]


def whole(answer: Answer, model: str, reader: AnswerReader | None = None) -> dict[str, Any]:
    """A ``chat.completion``; beside OpenAI's keys ``pyfastv``, the report. ``reader``: that tells its calls."""
    report = answer.report
    told = Told(answer.text) if reader is None else reader.feed(answer.text) + reader.finish()
    return {
        **_head("chat.completion", model),
        "choices": [
            {
                "index": 0,
                "message": as_message(told),
                "logprobs": None,
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


def chunks(stream: Stream, model: str) -> Iterator[dict[str, Any]]:
    """``chat.completion.chunk`` objects: the role, the pieces, the finish reason together with the report."""
    head = _head("chat.completion.chunk", model)

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**head, "choices": [choice]}

    yield chunk({"role": "assistant"})
    reader = stream.told_by
    for piece in stream:
        delta = {"content": piece} if reader is None else as_delta(reader.feed(piece))
        if delta:
            yield chunk(delta)
    rest, reason = {}, stream.answer.finish_reason
    if reader is not None:
        rest, reason = as_delta(reader.finish()), reader.reason(reason)
    yield {**chunk(rest, reason), "pyfastv": stream.report.to_dict()}


def _head(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4()}", "object": kind, "created": int(time.time()), "model": model}
