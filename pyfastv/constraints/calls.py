"""Calls of tools in an answer, told from its text while it comes."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

from ..errors import DecodeError
from .tools import CallFormat

__all__ = ["CallReader", "Told", "joined"]


@dataclass
class Told:
    """What is certain now, and was not before."""

    content: str = ""
    thought: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    """As in OpenAI's chunks: first the index, an id and the name of the function, then pieces of its arguments."""

    def __add__(self, later: Told) -> Told:
        """One after the other."""
        return Told(self.content + later.content, self.thought + later.thought, [*self.calls, *later.calls])


class CallReader:
    """Takes an answer piece by piece, without the thought that stands before it."""

    def __init__(self, form: CallFormat) -> None:
        self._form = form
        self._text = ""
        self._content = self._thought = ""  # told so far
        self._arguments: list[str] = []  # of each call, told so far

    @property
    def has_calls(self) -> bool:
        return bool(self._arguments)

    def feed(self, text: str) -> Told:
        self._text += text
        return self._read(final=False) if text else Told()

    def finish(self) -> Told:
        """The rest, when no more text comes."""
        return self._read(final=True)

    def _read(self, final: bool) -> Told:
        try:
            content, thought, calls = self._form.native.parse(self._text)
        except DecodeError:  # it is not as this form has it: what is not told yet is text
            content, thought, calls = self._content, self._thought, []
        told = Told(calls=self._told_calls(calls, final))
        if final and not self._arguments and self._text.startswith(content) and not thought:
            # what may have been the beginning of a call was none
            content = self._text
        elif not final or self._arguments:
            content = content.rstrip()
        if content.startswith(self._content):
            told.content, self._content = content[len(self._content) :], content
        if thought.startswith(self._thought):
            told.thought, self._thought = thought[len(self._thought) :], thought
        return told

    def _told_calls(self, calls: list[tuple[str, str, str]], final: bool) -> list[dict[str, Any]]:
        told = []
        for index, (call_id, name, arguments) in enumerate(calls):
            is_over = final or index < len(calls) - 1
            if index == len(self._arguments):
                first = arguments if is_over else ""
                self._arguments.append(first)
                call_id = call_id or f"call_{uuid.uuid4().hex[:24]}"
                function = {"name": name, "arguments": first}
                told.append({"index": index, "id": call_id, "type": "function", "function": function})
                continue
            before = self._arguments[index]
            if arguments.startswith(before) and len(arguments) > len(before):
                self._arguments[index] = arguments
                told.append({"index": index, "function": {"arguments": arguments[len(before) :]}})
        return told


def joined(pieces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Whole calls, of all that was told of them."""
    calls: list[dict[str, Any]] = []
    for piece in pieces:
        if piece["index"] == len(calls):
            calls.append({"id": piece["id"], "type": piece["type"], "function": dict(piece["function"])})
        else:
            calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
    return calls
