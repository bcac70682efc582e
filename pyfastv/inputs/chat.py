"""Chat messages to the prompt of a model: its own template, with a marker where each picture goes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import chain, islice
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .._checks import shown, utf8
from ..errors import ModelError, OptionError
from .images import Picture, Pictures, as_list

__all__ = ["ChatTemplate", "Prompt", "assistant_message", "system_message", "user_message"]

# The form that LLaVA-1.5 was trained on, for GGUF files without a template (early LLaVA conversions).
VICUNA = """\
{%- for message in messages -%}
{%- if message.role == 'user' -%}{{ 'USER: ' }}{%- endif -%}
{%- if message.role == 'assistant' -%}{{ 'ASSISTANT: ' }}{%- endif -%}
{%- for part in message.content if part.type == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}
{%- for part in message.content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}
{%- if message.role == 'assistant' -%}{{ '</s>' }}{%- else -%}{{ ' ' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""

_ROLES = ("system", "developer", "user", "assistant", "tool")

# Text of the trial renderings: nothing that a template tests for, trims or escapes.
_PROBE = "pyfastvprobe"

Message = dict[str, Any]


def user_message(question: object, pictures: Pictures = None) -> Message:
    """A question, its pictures first."""
    if not isinstance(question, str):
        raise OptionError(f"question must be a string; got {shown(question)}")
    parts: list[Message] = [{"type": "image", "image": picture} for picture in as_list(pictures)]
    return {"role": "user", "content": [*parts, _text(question)]}


def assistant_message(text: str) -> Message:
    """An answer."""
    return {"role": "assistant", "content": text}


def system_message(text: str) -> Message:
    """What stands before a conversation."""
    return {"role": "system", "content": text}


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


class _Refusal(jinja2.TemplateError):
    """The template called ``raise_exception``."""


@dataclass(frozen=True)
class _Placeholder:
    """What a template prints for a picture."""

    pattern: re.Pattern[str]
    first: str
    """The first character of every match."""
    part: Message
    """The content part that makes the template print it."""


class ChatTemplate:
    """A model's chat template, as Hugging Face defines them, in a sandbox.

    Templates differ in how they take pictures. Some walk over typed content parts and print a placeholder of
    their own (``<image>``, ``<|vision_start|><|image_pad|><|vision_end|>``); some take typed parts and know
    only text; some take strings. Which kind this one is, is found by rendering small trials.
    """

    def __init__(self, source: str | None, *, bos_token: str = "", eos_token: str = "") -> None:
        """``source``: Jinja2 text, None for the form of LLaVA-1.5. Raises ModelError if it does not parse."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        self._variables = {
            "bos_token": bos_token,
            "eos_token": eos_token,
            "tools": None,
            "add_generation_prompt": True,
        }
        try:
            self._template = environment.from_string(VICUNA if source is None else source)
        except jinja2.TemplateError as error:
            raise ModelError(f"the model's chat template does not parse: {error}") from error

    def render(self, messages: Iterable[Mapping[str, Any]], marker: str) -> Prompt:
        """The prompt for ``messages`` (OpenAI's shape), with ``marker`` in the place of each picture.

        Content is a string, or a list of ``{"type": "text", "text": str}``, ``{"type": "image_url",
        "image_url": str | {"url": str}}`` and ``{"type": "image", "image": picture}``, where a picture is
        what :func:`pyfastv.load_image` takes. Raises OptionError for messages of another shape and for those
        that the template refuses, ModelError where the template itself fails.
        """
        parsed, pictures = _parse(messages)
        text = self._render(parsed, len(pictures), marker)
        if text.count(marker) != len(pictures):
            raise OptionError(
                f"the model's chat template printed {text.count(marker)} of {len(pictures)} pictures: "
                "put the pictures into messages of the user"
            )
        bos = self._variables["bos_token"]
        add_bos = not (bos and text.startswith(str(bos)))
        answers = self._answers(parsed, len(pictures), marker, text) if pictures else ()
        return Prompt(text, tuple(pictures), add_bos, answers)

    def _render(self, messages: list[Message], n_pictures: int, marker: str) -> str:
        text = self._render_with_placeholders(messages, n_pictures, marker) if n_pictures else None
        if text is None:
            text = self._run([self._with_text_for_pictures(message, marker) for message in messages])
        return text

    def _answers(
        self, messages: list[Message], n_pictures: int, marker: str, text: str
    ) -> tuple[tuple[int, int], ...]:
        """:attr:`Prompt.answers`: found by rendering them with a mark at their begin and at their end."""
        begin, end = _unused_characters(text, 2)
        for inside in (False, True):
            marked = [_between(message, begin, end, inside) for message in messages]
            if marked == messages:
                return ()
            try:
                printed = self._render(marked, n_pictures, marker)
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
        short = text.rstrip()
        opening = self._opening
        return len(short) if opening and short.endswith(opening) and not text.endswith(opening) else len(text)

    @cached_property
    def _opening(self) -> str:
        """What a prompt ends with, behind the last message: the beginning of the answer."""
        closed, opened = (self._try(_PROBE, add_generation_prompt=opens) for opens in (False, True))
        return opened.removeprefix(closed) if opened.startswith(closed) else ""

    def _run(self, messages: Sequence[Message], **variables: bool) -> str:
        try:
            return self._template.render(messages=messages, **{**self._variables, **variables})
        except _Refusal as error:
            raise OptionError(f"the model's chat template refuses these messages: {error}") from error
        except Exception as error:  # a template is a foreign program
            raise ModelError(f"the model's chat template fails: {type(error).__name__}: {error}") from error

    def _try(self, content: object, **variables: bool) -> str:
        try:
            return self._run([{"role": "user", "content": content}], **variables)
        except (ModelError, OptionError):
            return ""

    @cached_property
    def _takes_strings(self) -> bool:
        return _PROBE in self._try(_PROBE)

    @cached_property
    def _takes_parts(self) -> bool:
        printed = self._try([_text(_PROBE)])
        # a template that only knows strings prints the list as Python or JSON would
        return _PROBE in printed and f"'{_PROBE}'" not in printed and f'"{_PROBE}"' not in printed

    @cached_property
    def _placeholder(self) -> _Placeholder | None:
        if not self._takes_parts:
            return None
        for part in ({"type": "image"}, {"type": "image_url", "image_url": {"url": ""}}):
            none, one, two = (self._try([part] * n + [_text(_PROBE)]) for n in range(3))
            for printed in _insertions(one, two):
                # the second picture's placeholder may carry another number than the first's
                pattern = re.compile(re.sub(r"\d+", r"\\d+", re.escape(printed)))
                if [len(pattern.findall(text)) for text in (none, one, two)] == [0, 1, 2]:
                    return _Placeholder(pattern, printed[0], part)
        return None

    def _render_with_placeholders(self, messages: list[Message], n_pictures: int, marker: str) -> str | None:
        """The prompt with the template's own placeholders replaced by markers; None where it has none.

        A question may contain the placeholder's text, whole or in parts that meet in the prompt. So that only
        the template's own are found, the first character of the placeholder is masked in all texts. If the
        template's output depends on that, only whole placeholders in a text are masked.
        """
        placeholder = self._placeholder
        if placeholder is None:
            return None
        messages = [self._with_parts(message, placeholder.part) for message in messages]
        plain = self._run(messages)
        (mask,) = _unused_characters(plain, 1)
        for masked_texts in (re.compile(re.escape(placeholder.first)), placeholder.pattern):
            masked = self._run([_mask(message, masked_texts, mask) for message in messages])
            found = placeholder.pattern.findall(masked)
            if len(found) == n_pictures and masked.replace(mask, placeholder.first) == plain:
                return placeholder.pattern.sub(lambda _: marker, masked).replace(mask, placeholder.first)
        return None

    def _with_parts(self, message: Message, picture_part: Message) -> Message:
        parts = message["content"]
        if self._takes_strings and all(part["type"] == "text" for part in parts):
            return self._with_text_for_pictures(message, "")
        return {**message, "content": [picture_part if part["type"] == "image" else part for part in parts]}

    def _with_text_for_pictures(self, message: Message, marker: str) -> Message:
        parts = [_text(marker) if part["type"] == "image" else part for part in message["content"]]
        if self._takes_parts and (len(parts) > 1 or not self._takes_strings):
            return {**message, "content": parts}
        return {**message, "content": "\n".join(part["text"] for part in parts)}


def _text(text: str) -> Message:
    return {"type": "text", "text": text}


def _mask(message: Message, pattern: re.Pattern[str], mask: str) -> Message:
    """The message with the first character of every match in its texts replaced by ``mask``."""

    def change(text: str) -> str:
        return pattern.sub(lambda hit: mask + hit[0][1:], text)

    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": change(content)}
    parts = [_text(change(part["text"])) if part["type"] == "text" else part for part in content]
    return {**message, "content": parts}


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


def _unused_characters(text: str, n: int) -> list[str]:
    """Characters of Unicode's private use areas that ``text`` does not have."""
    codes = chain(range(0xE000, 0xF8FF), range(0xF0000, 0x10FFFD))
    return list(islice((chr(code) for code in codes if chr(code) not in text), n))


def _between(message: Message, begin: str, end: str, inside: bool) -> Message:
    """An answer with marks around its text, or inside the space at its ends, which some templates take away; other
    messages as they are."""
    parts = list(message["content"])
    texts = [i for i, part in enumerate(parts) if part["type"] == "text" and part["text"].strip()]
    if message["role"] != "assistant" or not texts:
        return message
    first = parts[texts[0]]["text"]
    at = len(first) - len(first.lstrip()) if inside else 0
    parts[texts[0]] = _text(first[:at] + begin + first[at:])
    last = parts[texts[-1]]["text"]
    at = len(last.rstrip()) if inside else len(last)
    parts[texts[-1]] = _text(last[:at] + end + last[at:])
    return {**message, "content": parts}


def _parse(messages: Iterable[Mapping[str, Any]]) -> tuple[list[Message], list[Picture]]:
    """Messages with every content as a list of text and image parts; the pictures apart, in order."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
        raise OptionError(f"messages must be a list of messages; got {type(messages).__name__}")
    parsed: list[Message] = []
    pictures: list[Picture] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
            raise OptionError(f"{where} must have a role, one of {', '.join(_ROLES)}; got {shown(message)}")
        content = message.get("content")
        if content is None and message["role"] == "assistant":
            content = ""
        parts = [_text(utf8(f"{where}: the text", content))] if isinstance(content, str) else content
        if not isinstance(parts, (list, tuple)):
            raise OptionError(f"{where}: content must be a string or a list of parts; got {shown(content)}")
        parsed.append(
            {"role": message["role"], "content": [_parse_part(where, part, pictures) for part in parts]}
        )
    if not parsed:
        raise OptionError("messages is empty: pass at least one message of the user")
    return parsed, pictures


def _parse_part(where: str, part: object, pictures: list[Picture]) -> Message:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping) and kind == "text" and isinstance(part.get("text"), str):
        return _text(utf8(f"{where}: the text", part["text"]))
    if isinstance(part, Mapping) and kind in ("image_url", "image"):
        picture = next((part[key] for key in ("image", "image_url", "url", "path") if key in part), None)
        if isinstance(picture, Mapping):
            picture = picture.get("url")
        if picture is not None:
            pictures.append(picture)
            return {"type": "image"}
    raise OptionError(
        f"{where}: a content part must be {{'type': 'text', 'text': ...}}, "
        f"{{'type': 'image_url', 'image_url': {{'url': ...}}}} or {{'type': 'image', 'image': ...}}; "
        f"got {shown(part)}"
    )


def _raise_exception(message: str) -> NoReturn:
    raise _Refusal(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Hugging Face's ``tojson``: Jinja2's own escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)
