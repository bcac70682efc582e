"""Chat messages to the prompt of a model: its own template, with a marker where each picture goes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from .._checks import shown, utf8
from ..errors import ModelError, OptionError
from .images import Picture
from .messages import (
    Message,
    assistant_message,
    between,
    has_text,
    map_texts,
    parse_messages,
    system_message,
    text_part,
    user_message,
)
from .template import Template
from .thinking import open_thought
from .trials import Trials
from .typed import ControlToken, Words, unused_characters

__all__ = ["ChatTemplate", "Prompt", "assistant_message", "system_message", "user_message"]


@dataclass(frozen=True)
class Prompt:
    """What goes to the engine."""

    text: str
    """The rendered prompt; one media marker for each picture."""
    pictures: tuple[Picture, ...]
    """In the order of their markers, not read yet."""
    add_bos: bool
    """False where the template has already written the model's begin-of-sequence token."""
    answers: tuple[tuple[int, int], ...] = ()
    """Where earlier answers begin and end, in bytes of the text in UTF-8: so that each question behind a picture is
    computed as when it was asked. Empty without pictures, and where the template does not print answers as they are."""
    literal: tuple[tuple[int, int], ...] = ()
    """Stretches, in such bytes, in which names of control tokens and media markers are text: somebody has typed one."""

    def without_bos(self, bos_token: str) -> Prompt:
        """The same, for whoever adds the token that the template has written."""
        n = len(bos_token.encode())
        answers, literal = (
            tuple((begin - n, end - n) for begin, end in spans) for spans in (self.answers, self.literal)
        )
        return replace(self, text=self.text[len(bos_token) :], add_bos=True, answers=answers, literal=literal)

    def stretches(self) -> list[tuple[bytes, bool]]:
        """The text, in pieces, and whether names in it are tokens and markers pictures."""
        data, at = self.text.encode(), 0
        pieces = []
        for begin, end in self.literal:
            pieces += [(data[at:begin], True), (data[begin:end], False)]
            at = end
        return [piece for piece in (*pieces, (data[at:], True)) if piece[0]]


class ChatTemplate:
    """A model's chat template, as Hugging Face defines them, in a sandbox; how it takes messages is found by rendering
    small trials."""

    def __init__(
        self,
        source: str | None,
        *,
        bos_token: str = "",
        eos_token: str = "",
        control_tokens: Iterable[Sequence[Any]] = (),
    ) -> None:
        """``source``: Jinja2 text, None for the form of LLaVA-1.5. ``control_tokens``: of the vocabulary, as
        :class:`pyfastv.inputs.typed.ControlToken`. Raises ModelError if it does not parse."""
        self._template = Template(source, bos_token=bos_token, eos_token=eos_token)
        self._trials = Trials(self._template)
        self._bos_token = bos_token
        own = (ControlToken(bos_token), ControlToken(eos_token))
        self._control_tokens = [*own, *(ControlToken(*token) for token in control_tokens)]
        self._words: dict[str, Words] = {}  # by marker

    def render(
        self,
        messages: Iterable[Mapping[str, Any]],
        marker: str,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """The prompt for ``messages`` (OpenAI's shape), with ``marker`` in the place of each picture.

        Content is a string, or a list of ``{"type": "text", "text": str}``, ``{"type": "image_url",
        "image_url": str | {"url": str, "detail": str}}`` and ``{"type": "image", "image": picture}``, where a picture
        is what :func:`pyfastv.load_image` takes (``detail``: see :meth:`pyfastv.inputs.budget.Budget.with_detail`).
        Answers may have ``tool_calls``, which messages of the role ``tool`` answer. What a template does not know is
        written in a form that it knows: a system message at the beginning of the user's text, say. ``tools``: functions
        that it may offer to the model, in OpenAI's shape. ``variables``: of the template, such as ``enable_thinking``.
        Raises OptionError for messages of another shape and for those that the template refuses, ModelError where the
        template itself fails.
        """
        given = dict(variables or {})
        if tools:
            given["tools"] = _checked_tools(tools)
        parsed, pictures = parse_messages(messages)
        form, plain = self._first_that_renders(parsed, len(pictures), marker, given)

        def rendered(form: list[Message]) -> str:
            return self._render(form, len(pictures), marker, given)

        words = self._words.get(marker)
        if words is None:
            words = self._words[marker] = Words(self._control_tokens, marker)
        typed = words.look_for(form, plain, rendered)
        text = utf8("the prompt", typed.text)
        if typed.n_markers != len(pictures):
            raise OptionError(
                f"the model's chat template printed {typed.n_markers} of {len(pictures)} pictures: "
                "put the pictures into messages of the user"
            )
        in_order = [
            pictures[part["index"]] for message in form for part in message["content"] if "index" in part
        ]
        bos = self._bos_token
        typed_bos = bool(typed.literal) and typed.literal[0][0] == 0
        add_bos = typed_bos or not (bos and text.startswith(bos))
        answers = self._answers(form, len(pictures), marker, given, text) if pictures else ()
        if given.get("enable_thinking") is False and (closing := open_thought(text)):
            text = f"{text.rstrip()}\n\n{closing}\n\n"  # there are templates that ask nobody
        return Prompt(text, tuple(in_order), add_bos, answers, typed.literal)

    def _first_that_renders(
        self, messages: list[Message], n_pictures: int, marker: str, variables: Mapping[str, Any]
    ) -> tuple[list[Message], str]:
        refused: OptionError | ModelError | None = None
        for form in self._trials.forms(messages):
            try:
                return form, self._render(form, n_pictures, marker, variables)
            except (OptionError, ModelError) as error:
                refused = refused or error
        assert refused is not None
        raise refused

    def _render(
        self, messages: list[Message], n_pictures: int, marker: str, variables: Mapping[str, Any]
    ) -> str:
        text = None
        if n_pictures and self._trials.placeholder is not None and not self._loses_texts(messages):
            text = self._render_with_placeholders(messages, n_pictures, marker, variables)
        if text is None:
            text = self._template.run(
                [self._with_text_for_pictures(message, marker) for message in messages], variables
            )
        return text

    def _loses_texts(self, messages: Iterable[Message]) -> bool:
        several = any(sum(map(has_text, message["content"])) > 1 for message in messages)
        return several and not self._trials.keeps_texts

    def _answers(
        self,
        messages: list[Message],
        n_pictures: int,
        marker: str,
        variables: Mapping[str, Any],
        text: str,
    ) -> tuple[tuple[int, int], ...]:
        """:attr:`Prompt.answers`: found by rendering them with a mark at their begin and at their end."""
        begin, end = unused_characters(text, 2)
        for inside in (False, True):
            marked = [between(message, begin, end, inside) for message in messages]
            if marked == messages:
                return ()
            try:
                printed = self._render(marked, n_pictures, marker, variables)
            except (ModelError, OptionError):
                return ()
            if printed.replace(begin, "").replace(end, "") == text:
                break
        else:
            return ()
        answers, size = [], 0
        for found in re.finditer(f"([^{begin}{end}]*){begin}([^{begin}{end}]*){end}", printed):
            before, answer = found.groups()
            ahead = len(before[self._end_of_opening(before) :].encode())
            size += len(before.encode())
            answers.append((size - ahead, size + len(answer.encode())))
            size += len(answer.encode())
        return tuple(answers)

    def _end_of_opening(self, text: str) -> int:
        """Where in front of an answer that is over the prompt ended that it answers: without the space, in some."""
        short, opening = text.rstrip(), self._trials.opening
        return len(short) if opening and short.endswith(opening) and not text.endswith(opening) else len(text)

    def _render_with_placeholders(
        self, messages: list[Message], n_pictures: int, marker: str, variables: Mapping[str, Any]
    ) -> str | None:
        """The prompt with the template's own placeholders replaced by markers; None where they are not as many.

        A question may contain the placeholder's text, whole or in parts that meet in the prompt. So that only
        the template's own are found, the first character of the placeholder is masked in all texts. If the
        template's output depends on that, only whole placeholders in a text are masked.
        """
        placeholder = self._trials.placeholder
        assert placeholder is not None
        messages = [self._with_parts(message, placeholder.part) for message in messages]
        plain = self._template.run(messages, variables)
        (mask,) = unused_characters(plain, 1)
        for masked_texts in (re.compile(re.escape(placeholder.first)), placeholder.pattern):
            masked = self._template.run(
                [_mask(message, masked_texts, mask) for message in messages], variables
            )
            found = placeholder.pattern.findall(masked)
            if len(found) == n_pictures and masked.replace(mask, placeholder.first) == plain:
                return placeholder.pattern.sub(lambda _: marker, masked).replace(mask, placeholder.first)
        return None

    def _with_parts(self, message: Message, picture_part: Message) -> Message:
        parts = message["content"]
        if self._trials.takes_strings(message["role"]) and all(map(has_text, parts)):
            return self._with_text_for_pictures(message, "")
        return {**message, "content": [part if has_text(part) else picture_part for part in parts]}

    def _with_text_for_pictures(self, message: Message, marker: str) -> Message:
        role, trials = message["role"], self._trials
        parts = [part if has_text(part) else text_part(marker) for part in message["content"]]
        if len(parts) > 1 and not trials.keeps_texts:
            parts = [text_part(_lines(parts))]
        if trials.takes_parts(role) and (len(parts) > 1 or not trials.takes_strings(role)):
            return {**message, "content": parts}
        return {**message, "content": _lines(parts)}


def _lines(parts: Iterable[Message]) -> str:
    return "\n".join(part["text"] for part in parts)


def _mask(message: Message, pattern: re.Pattern[str], mask: str) -> Message:
    """The message with the first character of every match in its texts replaced by ``mask``."""
    return map_texts(message, lambda text: pattern.sub(lambda hit: mask + hit[0][1:], text))


def _checked_tools(tools: object) -> list[dict[str, Any]]:
    functions = [
        tool.get("function") if isinstance(tool, Mapping) else None
        for tool in (tools if isinstance(tools, (list, tuple)) else [None])
    ]
    if not all(isinstance(one, Mapping) and isinstance(one.get("name"), str) for one in functions):
        raise OptionError(
            f"tools must be a list of {{'type': 'function', 'function': {{'name': ..., ...}}}}; got {shown(tools)}"
        )
    return [dict(tool) for tool in cast(Sequence[Mapping[str, Any]], tools)]
