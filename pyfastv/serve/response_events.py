"""The answers of OpenAI's responses: their items, and the events of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

from ..engine.job_pool import Job
from .answering import event
from .errors import ApiError, error_text

__all__ = ["ResponseTelling"]

_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}


class _Texts(NamedTuple):
    """How an item of text is called: it has one part."""

    parts: str
    """Where it is."""
    number: str
    part_event: str
    text_event: str
    empty: dict[str, Any]
    """The part without text."""


# A thought is the summary of an item, as clients of OpenAI's own models know it; there are those that take the first
# content of any item for the answer.
_TEXTS = {
    "message": _Texts(
        "content",
        "content_index",
        "response.content_part",
        "response.output_text",
        {"type": "output_text", "text": "", "annotations": [], "logprobs": []},
    ),
    "reasoning": _Texts(
        "summary",
        "summary_index",
        "response.reasoning_summary_part",
        "response.reasoning_summary_text",
        {"type": "summary_text", "text": ""},
    ),
}


class ResponseTelling:
    """``response``; of a stream its events. One item is open at a time, the last."""

    def __init__(self, echo: Mapping[str, Any], model: str, tokens_in: Callable[[str], int]) -> None:
        """``echo``: what is said of the request. ``tokens_in``: a text, how many."""
        self._echo = echo
        self._model = model
        self._tokens_in = tokens_in
        self._id = f"resp_{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._output: list[dict[str, Any]] = []
        self._open = False
        self._call: Any = None  # index of the call that is open
        self._number = 0
        self._reason: str | None = None

    def begin(self, jobs: Sequence[Job]) -> None:
        pass

    def whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        [choice] = answer["choices"]
        for _ in self._told(choice["message"], choice):
            pass
        return self._ended(answer)

    def chunk(self, chunk: dict[str, Any]) -> str:
        events = [*self._begun()]
        for choice in chunk["choices"]:
            events += self._told(choice["delta"], choice)
        if chunk.get("usage"):
            response = self._ended(chunk)
            events.append(self._event(f"response.{response['status']}", response=response))
        return "".join(events)

    def ping(self) -> str:
        return ": ping\n\n"

    def failed(self, error: ApiError) -> str:
        codes = {429: "rate_limit_exceeded", 400: "invalid_prompt"}
        told = {"code": codes.get(error.status_code, "server_error"), "message": error_text(error)}
        events = [
            *self._begun(),
            self._event("response.failed", response=self._response("failed", error=told)),
        ]
        return "".join(events)

    def end(self) -> str:
        return ""

    def _event(self, name: str, /, **fields: Any) -> str:
        number, self._number = self._number, self._number + 1
        return event({"type": name, "sequence_number": number, **fields}, name)

    def _begun(self) -> Iterator[str]:
        if self._number == 0:
            for name in ("response.created", "response.in_progress"):
                yield self._event(name, response=self._response("in_progress"))

    def _told(self, said: dict[str, Any], choice: dict[str, Any]) -> Iterator[str]:
        """``said``: a message, or a piece of one."""
        if thought := said.get("reasoning_content"):
            yield from self._said("reasoning", thought, [])
        if text := said.get("content"):
            probs = choice["logprobs"]["content"] if choice.get("logprobs") else []
            yield from self._said("message", text, probs)
        for number, call in enumerate(said.get("tool_calls") or []):
            yield from self._called(call.get("index", number), call)
        if choice.get("finish_reason") is not None:
            self._reason = choice["finish_reason"]
            if all(item["type"] == "reasoning" for item in self._output):  # an empty answer
                yield from self._item("message")
            yield from self._closed()

    def _said(self, kind: str, text: str, probs: list[dict[str, Any]]) -> Iterator[str]:
        if not self._open or self._output[-1]["type"] != kind:
            yield from self._item(kind)
        names = _TEXTS[kind]
        part = self._output[-1][names.parts][0]
        part["text"] += text
        more: dict[str, Any] = {names.number: 0, "delta": text}
        if kind == "message":
            part["logprobs"] += probs
            more["logprobs"] = probs
        yield self._at(f"{names.text_event}.delta", **more)

    def _called(self, index: int, call: dict[str, Any]) -> Iterator[str]:
        function = call.get("function") or {}
        if not self._open or self._call != index:
            yield from self._item(
                "function_call",
                call_id=call.get("id") or f"call_{uuid.uuid4().hex}",
                name=function.get("name", ""),
                arguments="",
            )
            self._call = index
        if arguments := function.get("arguments"):
            self._output[-1]["arguments"] += arguments
            yield self._at("response.function_call_arguments.delta", delta=arguments)

    def _item(self, kind: str, /, **fields: Any) -> Iterator[str]:
        """Ends the one before, and begins one."""
        yield from self._closed()
        item: dict[str, Any] = {
            "id": f"{_PREFIXES[kind]}_{uuid.uuid4().hex}",
            "type": kind,
            "status": "in_progress",
        }
        names = _TEXTS.get(kind)
        if kind == "message":
            item["role"] = "assistant"
        if names is not None:
            item[names.parts] = []
        item |= fields
        self._output.append(item)
        self._open, self._call = True, None
        yield self._event("response.output_item.added", output_index=len(self._output) - 1, item=item)
        if names is not None:
            part = deepcopy(names.empty)
            item[names.parts].append(part)
            yield self._at(f"{names.part_event}.added", **{names.number: 0}, part=part)

    def _closed(self) -> Iterator[str]:
        if not self._open:
            return
        self._open = False
        item = self._output[-1]
        names = _TEXTS.get(item["type"])
        if names is not None:
            [part] = item[names.parts]
            told = {name: part[name] for name in ("text", "logprobs") if name in part}
            yield self._at(f"{names.text_event}.done", **{names.number: 0}, **told)
            yield self._at(f"{names.part_event}.done", **{names.number: 0}, part=part)
        else:
            told = {"name": item["name"], "arguments": item["arguments"]}
            yield self._at("response.function_call_arguments.done", **told)
        item["status"] = "incomplete" if self._reason == "length" else "completed"
        yield self._event("response.output_item.done", output_index=len(self._output) - 1, item=item)

    def _at(self, name: str, /, **fields: Any) -> str:
        """An event of the last item."""
        return self._event(name, item_id=self._output[-1]["id"], output_index=len(self._output) - 1, **fields)

    def _ended(self, answer: dict[str, Any]) -> dict[str, Any]:
        usage = dict(answer["usage"])
        thoughts = [item["summary"][0]["text"] for item in self._output if item["type"] == "reasoning"]
        told = {
            "input_tokens": usage.pop("prompt_tokens"),
            "input_tokens_details": usage.pop("prompt_tokens_details"),
            "output_tokens": usage.pop("completion_tokens"),
            "output_tokens_details": {"reasoning_tokens": sum(map(self._tokens_in, thoughts))},
            **usage,
        }
        extra = {name: answer[name] for name in ("timings", "fastv_details") if name in answer}
        cut = self._reason == "length"
        details = {"reason": "max_output_tokens"} if cut else None
        return self._response(
            "incomplete" if cut else "completed", usage=told, incomplete_details=details, **extra
        )

    def _response(self, status: str, **fields: Any) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": self._model,
            "output": self._output if status != "in_progress" else [],
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            "usage": None,
            **self._echo,
            **fields,
        }
