"""Names of control tokens that somebody has typed: in a message's text they are text, in the template's own words tokens.

A tokenizer finds these names wherever they stand in a prompt, so that "</s>" in a question would end the user's turn, and
whole turns could be forged. Where a text has such a name, that stretch of the prompt is tokenized without them: from the
control token of the template before it to the one behind it, so that all other tokens are those that they are otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain, islice
from typing import NamedTuple

from ..errors import ModelError, OptionError
from .messages import Message, map_texts

__all__ = ["ControlToken", "Typed", "Words", "unused_characters"]

_SPACE = " \t\n\v\f\r"  # what a token takes that strips
_NOTHING = re.compile("(?!)")

Render = Callable[[list[Message]], str]


class ControlToken(NamedTuple):
    """One of a vocabulary, by its name."""

    name: str
    strips_left: bool = False
    """It takes the white space before it."""
    strips_right: bool = False


class Typed(NamedTuple):
    """A rendered prompt in which typed names were looked for."""

    text: str
    n_markers: int
    """Media markers that nobody has typed."""
    literal: tuple[tuple[int, int], ...] = ()
    """Stretches, in bytes of the text in UTF-8, in which no name is a token."""


class Words:
    """The names of control tokens, and the media marker."""

    def __init__(self, tokens: Iterable[ControlToken], marker: str) -> None:
        self._tokens = {token.name: token for token in (*tokens, ControlToken(marker)) if token.name}
        self._marker = marker
        self._firsts = _any_of({name[0] for name in self._tokens})

    @cached_property
    def _names(self) -> re.Pattern[str]:
        return _any_of(self._tokens)

    def look_for(self, messages: Sequence[Message], plain: str, render: Render) -> Typed:
        """``plain``: what ``render`` gives of the messages. To find what of it was typed, they are rendered with other
        characters where names begin."""
        texts = _texts_of(messages)
        firsts = sorted(set(self._firsts.findall(texts)))
        if not firsts:
            return Typed(plain, plain.count(self._marker))
        masks = dict(zip(firsts, unused_characters(plain + texts, len(firsts)), strict=True))
        back = {ord(mask): first for first, mask in masks.items()}

        def masked(others: re.Pattern[str], answers: re.Pattern[str]) -> str:
            def change_of(pattern: re.Pattern[str]) -> Callable[[str], str]:
                return lambda text: pattern.sub(lambda hit: masks[hit[0][0]] + hit[0][1:], text)

            changes = {"assistant": change_of(answers)}
            found = render(
                [map_texts(message, changes.get(message["role"], change_of(others))) for message in messages]
            )
            for mask in masks.values():  # as JSON may write it
                found = found.replace(f"\\u{ord(mask):04x}", mask)
            return found

        def tried(others: re.Pattern[str], answers: re.Pattern[str]) -> str | None:
            """None: it is another text, or none."""
            try:
                found = masked(others, answers)
            except (ModelError, OptionError):
                return None
            return found if found.translate(back) == plain else None

        # Halves of a name may meet in the prompt, so first every character that one begins with; if the template looks
        # into the texts, whole names.
        for pattern in (self._firsts, self._names):
            if (found := tried(pattern, pattern)) is not None:
                return self._literal(found, back)
        # To the template, too, a name in a question is text. In an answer it may be what ends a thought.
        names = dict.fromkeys(self._names.findall(texts))
        plain_in_answers = [name for name in names if tried(_NOTHING, _any_of([name])) is not None]
        return self._literal(masked(self._names, _any_of(plain_in_answers)), back)

    def _literal(self, masked: str, back: Mapping[int, str]) -> Typed:
        typed = {at for at, character in enumerate(masked) if ord(character) in back}
        text = masked.translate(back)
        spans: list[tuple[int, int]] = []  # in characters
        n_markers = 0
        begin, has_typed = 0, False  # of the stretch behind the last name that is a token
        before = ControlToken("")
        for found in self._names.finditer(text):
            if found.start() in typed:
                has_typed = True
                continue
            token = self._tokens[found[0]]
            if has_typed:
                spans.append(_stretch(text, begin, found.start(), before, token))
            n_markers += token.name == self._marker
            begin, has_typed, before = found.end(), False, token
        if has_typed:
            spans.append(_stretch(text, begin, len(text), before, ControlToken("")))
        return Typed(text, n_markers, tuple(_in_bytes(text, spans)))


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else _NOTHING


def _stretch(text: str, begin: int, end: int, before: ControlToken, behind: ControlToken) -> tuple[int, int]:
    """Without the white space that the tokens beside it take."""
    if before.strips_right:
        begin = end - len(text[begin:end].lstrip(_SPACE))
    if behind.strips_left:
        end = begin + len(text[begin:end].rstrip(_SPACE))
    return begin, end


def _in_bytes(text: str, spans: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    at, size = 0, 0
    for begin, end in spans:
        first = size + len(text[at:begin].encode())
        at, size = end, first + len(text[begin:end].encode())
        yield first, size


def unused_characters(text: str, n: int) -> list[str]:
    """Characters of Unicode's private use areas that ``text`` does not have."""
    codes = chain(range(0xE000, 0xF8FF), range(0xF0000, 0x10FFFD))
    return list(islice((chr(code) for code in codes if chr(code) not in text), n))


def _texts_of(messages: Sequence[Message]) -> str:
    """All of them, one behind the other, apart."""
    texts: list[str] = []

    def note(text: str) -> str:
        texts.append(text)
        return text

    for message in messages:
        map_texts(message, note)
    return "\0".join(texts)
