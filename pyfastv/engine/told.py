"""What an answer tells: its thought, its content, and its calls of tools, each for itself."""

from __future__ import annotations

from typing import Any

from ..constraints.calls import CallReader, Told, joined
from ..constraints.tools import CallFormat
from .thoughts import ThoughtReader

__all__ = ["AnswerReader", "as_delta", "as_message"]


class AnswerReader:
    """Takes an answer piece by piece."""

    def __init__(self, open_thought: str | None, calls: CallFormat | None) -> None:
        """``open_thought``: the tag that ends the thought in which the answer begins, empty: in none; None: thoughts stay
        in the content. ``calls``: how it has its calls, None: it has none."""
        self._thoughts = None if open_thought is None else ThoughtReader(open_thought)
        self._calls = None if calls is None else CallReader(calls)

    def feed(self, text: str) -> Told:
        """What is certain now, and was not before."""
        thought, answer = ("", text) if self._thoughts is None else self._thoughts.feed(text)
        return self._told(thought, answer)

    def finish(self) -> Told:
        """The rest, when no more text comes."""
        thought, answer = ("", "") if self._thoughts is None else self._thoughts.finish()
        told = self._told(thought, answer)
        return told if self._calls is None else told + self._calls.finish()

    def reason(self, finish_reason: str) -> str:
        """Why the answer ended, as OpenAI has it."""
        has_calls = self._calls is not None and self._calls.has_calls
        return "tool_calls" if has_calls and finish_reason == "stop" else finish_reason

    def _told(self, thought: str, answer: str) -> Told:
        told = Told(answer) if self._calls is None else self._calls.feed(answer)
        return Told(thought=thought) + told


def as_message(told: Told) -> dict[str, Any]:
    """OpenAI's message, of all that was told."""
    message: dict[str, Any] = {"role": "assistant"}
    if told.thought:
        message["reasoning_content"] = told.thought
    calls = joined(told.calls)
    message["content"] = told.content if told.content or not calls else None
    return {**message, "tool_calls": calls} if calls else message


def as_delta(told: Told) -> dict[str, Any]:
    """Of OpenAI's chunk."""
    parts = {"reasoning_content": told.thought, "content": told.content, "tool_calls": told.calls}
    return {name: part for name, part in parts.items() if part}
