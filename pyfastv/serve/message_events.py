"""The answers and errors of Anthropic's messages: their blocks, and the events of a stream."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from ..engine.job_pool import Job
from .answering import event
from .errors import ApiError, error_text

__all__ = ["MessageTelling", "error_form"]

_STOPPED = {"length": "max_tokens", "tool_calls": "tool_use"}


class MessageTelling:
    """``message``; of a stream its events. One block is open at a time, the last."""

    def __init__(self, model: str) -> None:
        self._jobs: Sequence[Job] = ()
        self._head = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": model}
        self._begun = False
        self._number = -1  # of the last block
        self._kind: tuple[str, Any] | None = None  # of the block that is open; a call has its index
        self._reason: dict[str, Any] = {}

    def begin(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs

    def whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        [choice] = answer["choices"]
        message = choice["message"]
        content: list[dict[str, Any]] = []
        if thought := message.get("reasoning_content"):
            content.append({"type": "thinking", "thinking": thought, "signature": ""})
        if text := message.get("content"):
            content.append({"type": "text", "text": text})
        for call in message.get("tool_calls") or []:
            function = call["function"]
            block = {"type": "tool_use", "id": call["id"], "name": function["name"]}
            content.append({**block, "input": _arguments(function["arguments"])})
        stopped = self._stopped(choice["finish_reason"])
        return {**self._head, "content": content, **stopped, "usage": _usage(answer), **_extra(answer)}

    def chunk(self, chunk: dict[str, Any]) -> str:
        events = [*self._started()]
        for choice in chunk["choices"]:
            events += self._told(choice["delta"])
            if choice.get("finish_reason") is not None:
                events += self._closed()
                self._reason = self._stopped(choice["finish_reason"])
        if chunk.get("usage"):
            usage = {"usage": _usage(chunk), **_extra(chunk)}
            events.append(self._event("message_delta", delta=self._reason, **usage))
            events.append(self._event("message_stop"))
        return "".join(events)

    def ping(self) -> str:
        return self._event("ping")

    def failed(self, error: ApiError) -> str:
        return event(error_form(error), "error")

    def end(self) -> str:
        return ""

    def _event(self, name: str, /, **fields: Any) -> str:
        return event({"type": name, **fields}, name)

    def _started(self) -> Iterator[str]:
        if self._begun:
            return
        self._begun = True
        # what was still in a slot is known when it has one
        usage = {
            "input_tokens": sum(job.prompt_tokens for job in self._jobs),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 0,
        }
        silent: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        yield self._event("message_start", message={**self._head, **silent})
        yield self.ping()

    def _told(self, delta: dict[str, Any]) -> Iterator[str]:
        if thought := delta.get("reasoning_content"):
            yield from self._block("thinking", None, {"thinking": "", "signature": ""})
            yield self._delta("thinking_delta", thinking=thought)
        if text := delta.get("content"):
            yield from self._block("text", None, {"text": ""})
            yield self._delta("text_delta", text=text)
        for number, call in enumerate(delta.get("tool_calls") or []):
            function = call.get("function") or {}
            head = {"id": call.get("id") or f"toolu_{uuid.uuid4().hex}", "name": function.get("name", "")}
            yield from self._block("tool_use", call.get("index", number), {**head, "input": {}})
            if arguments := function.get("arguments"):
                yield self._delta("input_json_delta", partial_json=arguments)

    def _block(self, kind: str, index: Any, fields: dict[str, Any]) -> Iterator[str]:
        """Begins one, unless it is open."""
        if self._kind == (kind, index):
            return
        yield from self._closed()
        self._number += 1
        self._kind = (kind, index)
        block = {"type": kind, **fields}
        yield self._event("content_block_start", index=self._number, content_block=block)

    def _delta(self, kind: str, /, **fields: Any) -> str:
        return self._event("content_block_delta", index=self._number, delta={"type": kind, **fields})

    def _closed(self) -> Iterator[str]:
        if self._kind is None:
            return
        if self._kind[0] == "thinking":
            yield self._delta("signature_delta", signature="")
        self._kind = None
        yield self._event("content_block_stop", index=self._number)

    def _stopped(self, reason: str) -> dict[str, Any]:
        string = self._jobs[0].stop_string if self._jobs and reason == "stop" else ""
        why = "stop_sequence" if string else "end_turn"
        return {"stop_reason": _STOPPED.get(reason, why), "stop_sequence": string or None}


def _arguments(text: str) -> Any:
    """Of a call; what is not JSON is told as it is."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {"arguments": text}
    return found if isinstance(found, dict) else {"arguments": found}


def _usage(answer: dict[str, Any]) -> dict[str, Any]:
    """Anthropic's ``input_tokens`` are those that were not cached."""
    usage = answer["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": usage["prompt_tokens"] - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage["completion_tokens"],
        **{name: value for name, value in usage.items() if name.startswith("visual_")},
    }


def _extra(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: answer[name] for name in ("timings", "fastv_details") if name in answer}


_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_form(error: ApiError) -> dict[str, Any]:
    """Anthropic's error object."""
    status = error.status_code
    kind = _ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": error_text(error)}}
