"""What a chat template takes and prints: found by rendering small trials, since none declares it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .messages import (
    Message,
    arguments_as_text,
    join_turns,
    numbered_calls,
    system_as_user,
    text_part,
    tools_as_text,
)
from .template import Template

__all__ = ["Placeholder", "Trials"]

# Text of the trial renderings: nothing that a template tests for, trims or escapes.
_PROBE = "pyfastvprobe"
_OTHER = "pyfastvother"
_CALL_ID = "call00001"  # Mistral's templates want nine letters and digits
_MOST_KEPT = 256  # findings


@dataclass(frozen=True)
class Placeholder:
    """What a template prints for a picture."""

    pattern: re.Pattern[str]
    first: str
    """The first character of every match."""
    part: Message
    """The content part that makes the template print it."""


class Trials:
    """What one template does with messages.

    Templates differ in how they take content. Some walk over typed parts and print a placeholder of their own for a
    picture (``<image>``, ``<|vision_start|><|image_pad|><|vision_end|>``); some take typed parts and know only text; some
    take strings; and for each role it may be another. Some know no system role, or no tools, and either refuse such
    messages or leave them out.
    """

    def __init__(self, template: Template) -> None:
        self._template = template
        self._taken: dict[tuple[str, bool], bool] = {}
        self._printed: dict[tuple[str, ...], bool] = {}

    # the shape of content

    def takes_strings(self, role: str) -> bool:
        """Of a role that it does not know at all, as of the user."""
        known = self._takes(role, False) or self._takes(role, True)
        return self._takes(role if known else "user", False)

    def takes_parts(self, role: str) -> bool:
        """Typed ones, of text."""
        known = self._takes(role, False) or self._takes(role, True)
        return self._takes(role if known else "user", True)

    def _takes(self, role: str, as_parts: bool) -> bool:
        key = (role, as_parts)
        if key not in self._taken:
            content = [text_part(_PROBE)] if as_parts else _PROBE
            printed = self._template.try_out(self._around(role, content))
            # a template that only knows strings prints the list as Python or JSON would
            quoted = as_parts and (f"'{_PROBE}'" in printed or f'"{_PROBE}"' in printed)
            self._taken[key] = _PROBE in printed and not quoted
        return self._taken[key]

    def _around(self, role: str, content: Any) -> list[Message]:
        """The shortest conversation with such a message."""
        message = {"role": role, "content": content}
        if role == "user":
            return [message]
        user = self._shaped("user", _OTHER)
        if role == "system":
            return [message, user]
        if role == "assistant":
            return [user, message, user]
        return [user, self._call(_OTHER), {**message, "tool_call_id": _CALL_ID, "name": _OTHER}]

    def _shaped(self, role: str, text: str) -> Message:
        as_string = self.takes_strings(role) or not self.takes_parts(role)
        return {"role": role, "content": text if as_string else [text_part(text)]}

    def _call(self, word: str, as_text: bool = False) -> Message:
        """Of a function with this name, and an argument with this value."""
        call = {"id": _CALL_ID, "type": "function", "function": {"name": word, "arguments": {"at": word}}}
        message = {**self._shaped("assistant", ""), "tool_calls": [call]}
        return arguments_as_text([message])[0] if as_text else message

    @cached_property
    def keeps_texts(self) -> bool:
        """Several text parts of a message, also those before a picture: some templates print one of them."""
        if not self.takes_parts("user"):
            return True
        picture = [] if self.placeholder is None else [self.placeholder.part]
        words = _words(2)
        parts = [text_part(words[0]), *picture, text_part(words[1])]
        printed = self.user(parts)
        return all(word in printed for word in words)

    def user(self, content: object, variables: Mapping[str, Any] | None = None) -> str:
        """What is printed of this content alone; empty: it fails."""
        return self._template.try_out([{"role": "user", "content": content}], variables)

    @cached_property
    def opening(self) -> str:
        """What a prompt ends with, behind the last message: the beginning of the answer."""
        content = self._shaped("user", _PROBE)["content"]
        closed, opened = (self.user(content, {"add_generation_prompt": opens}) for opens in (False, True))
        return opened.removeprefix(closed) if opened.startswith(closed) else ""

    # pictures

    @cached_property
    def placeholder(self) -> Placeholder | None:
        if not self.takes_parts("user"):
            return None
        for part in ({"type": "image"}, {"type": "image_url", "image_url": {"url": ""}}):
            none, one, two = (self.user([part] * n + [text_part(_PROBE)]) for n in range(3))
            for inserted in _insertions(one, two):
                for printed in dict.fromkeys((_without_label(inserted), inserted)):
                    # the second picture's placeholder may carry another number than the first's
                    pattern = re.compile(re.sub(r"\d+", r"\\d+", re.escape(printed)))
                    if [len(pattern.findall(text)) for text in (none, one, two)] == [0, 1, 2]:
                        return Placeholder(pattern, printed[0], part)
        return None

    # the order of roles

    def forms(self, messages: list[Message]) -> Iterator[list[Message]]:
        """Those of these forms of the messages of which nothing is lost or refused, the first the one to take: as they
        are; neighbours of one role as one; system messages in the user's text, those behind the first or all; and, with
        tools, other ids of calls, their arguments as text, or all that is about them as text. If there is none, as they
        are."""
        fits = False
        for form in _forms(messages):
            if self._prints(_kinds(form)):
                fits = True
                yield form
        if not fits:
            yield messages

    def _prints(self, kinds: tuple[str, ...]) -> bool:
        kinds = _shortest(kinds)
        found = self._printed.get(kinds)
        if found is None:
            if len(self._printed) >= _MOST_KEPT:
                self._printed.clear()
            found = self._printed[kinds] = self._prints_all(kinds)
        return found

    def _prints_all(self, kinds: tuple[str, ...]) -> bool:
        words = _words(len(kinds))
        probes = [self._probe(kind, word) for kind, word in zip(kinds, words, strict=True)]
        printed = self._template.try_out(probes).casefold()
        # of a call its name and its argument
        times = [2 if kind in (_CALL, _TEXT_CALL) else 1 for kind in kinds]
        complete = all(printed.count(word) >= n for word, n in zip(words, times, strict=True))
        # not as Python would print an argument
        return complete and "'at'" not in printed

    def _probe(self, kind: str, word: str) -> Message:
        if kind in (_CALL, _TEXT_CALL):
            return self._call(word, as_text=kind == _TEXT_CALL)
        more = {"tool_call_id": _CALL_ID, "name": _OTHER} if kind == "tool" else {}
        return {**self._shaped(kind, word), **more}


_CALL, _TEXT_CALL = "call", "call in text"


def _words(n: int) -> list[str]:
    """None of them in another."""
    return [f"{_PROBE}{number}q" for number in range(n)]


def _forms(messages: list[Message]) -> Iterator[list[Message]]:
    about_tools = [messages]
    if any(message["role"] == "tool" or "tool_calls" in message for message in messages):
        about_tools += [numbered_calls(messages), arguments_as_text(messages), tools_as_text(messages)]
    for form in about_tools:
        yield form
        yield join_turns(form)
        if any(message["role"] == "system" for message in form):
            yield system_as_user(form, keep_first=True)
            yield system_as_user(form)


def _kinds(messages: Sequence[Message]) -> tuple[str, ...]:
    """Roles, and which arguments calls have."""
    kinds = []
    for message in messages:
        calls = message.get("tool_calls", ())
        as_text = any(isinstance(call["function"]["arguments"], str) for call in calls)
        kinds.append((_TEXT_CALL if as_text else _CALL) if calls else message["role"])
    return tuple(kinds)


def _shortest(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Of an ordinary conversation, however long, one with a question and an answer before the last question."""
    system, turns = (kinds[:1], kinds[1:]) if kinds[0] == "system" else ((), kinds)
    if len(turns) > 3 and len(turns) % 2 and turns == ("user", "assistant") * (len(turns) // 2) + ("user",):
        return (*system, "user", "assistant", "user")
    return kinds


def _without_label(printed: str) -> str:
    """From its first bracket to the last one that closes: a template may print words before a picture ("Picture 1: "),
    which are its text."""
    first, last = re.search(r"[<\[({]", printed), max(map(printed.rfind, ">])}"))
    return printed[first.start() : last + 1] if first and last > first.start() else printed


def _insertions(shorter: str, longer: str) -> Iterable[str]:
    """Strings, stripped, whose insertion into ``shorter`` gives ``longer``; the rightmost insertion first.

    Only strings that close no bracket which they did not open: ``<image>``, never ``image><``."""
    size = len(longer) - len(shorter)
    if size <= 0:
        return
    for at in range(len(shorter), -1, -1):
        if longer[:at] == shorter[:at] and longer[at + size :] == shorter[at:]:
            inserted = longer[at : at + size].strip()
            if inserted and not inserted[0].isdigit() and _is_whole(inserted):
                yield inserted


def _is_whole(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character in "<[({") - (character in ">])}")
        if depth < 0:
            return False
    return depth == 0
