"""Prompts that end within an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import OptionError
from .chat import ChatTemplate, Prompt
from .messages import text_part
from .typed import unused_characters

__all__ = ["render_continued"]


def render_continued(
    template: ChatTemplate, messages: Sequence[Mapping[str, Any]], marker: str, **options: Any
) -> Prompt:
    """As :meth:`ChatTemplate.render`, but the last message, an answer, is open: what the model writes goes on with it.

    Raises OptionError, too, where the last message is no answer with text, or the template changes the end of one.
    """
    *earlier, last = messages or [{}]
    parts = last.get("content") if last.get("role") == "assistant" else None
    if isinstance(parts, str):
        parts = [text_part(parts)]
    if not parts or parts[-1].get("type") != "text" or not parts[-1]["text"]:
        raise OptionError(
            "continue_final_message: the last message must be one of the assistant that ends with text"
        )
    (end,) = unused_characters(_texts_of(messages), 1)
    opened = [*parts[:-1], text_part(parts[-1]["text"] + end)]
    prompt = template.render([*earlier, {**last, "content": opened}], marker, **options)
    text, found, rest = prompt.text.partition(end)
    if not found or end in rest or marker in rest:
        raise OptionError(
            "continue_final_message: the model's chat template does not print the last message as it is: leave it out"
        )
    size = len(text.encode())
    answers = tuple(span for span in prompt.answers if span[1] <= size)
    literal = tuple((begin, min(stop, size)) for begin, stop in prompt.literal if begin < size)
    return replace(prompt, text=text, answers=answers, literal=literal)


def _texts_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """All of them, one behind the other."""
    texts = [
        part.get("text") if isinstance(part, Mapping) else part
        for message in messages
        for part in _parts(message.get("content"))
    ]
    return "".join(text for text in texts if isinstance(text, str))


def _parts(content: Any) -> list[Any]:
    return [content] if isinstance(content, str) else list(content or [])
