"""Answers in the shape of OpenAI's chat completions, as llama-cpp-python returns them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

from .answer import Answer
from .stream import Stream

__all__ = ["chunks", "whole"]


def whole(answer: Answer, model: str) -> dict[str, Any]:
    """A ``chat.completion``; beside OpenAI's keys ``pyfastv``, the report."""
    report = answer.report
    return {
        **_head("chat.completion", model),
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": answer.text},
                "logprobs": None,
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


def chunks(stream: Stream, model: str) -> Iterator[dict[str, Any]]:
    """``chat.completion.chunk`` objects: the role, the pieces, the finish reason together with the report."""
    head = _head("chat.completion.chunk", model)

    def chunk(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**head, "choices": [choice]}

    yield chunk({"role": "assistant"})
    for piece in stream:
        yield chunk({"content": piece})
    yield {**chunk({}, stream.answer.finish_reason), "pyfastv": stream.report.to_dict()}


def _head(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4()}", "object": kind, "created": int(time.time()), "model": model}
