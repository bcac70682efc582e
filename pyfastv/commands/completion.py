"""What Tab completes in ``pyfastv chat``: commands, names of options, and paths as terminals write them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

__all__ = ["Completion", "completions"]

_UNQUOTED = re.compile(r"[^\w@%+=:,./~-]")  # what a shell's word has behind a backslash


class Completion(NamedTuple):
    """In place of the last ``length`` characters a text, which is ``shown`` as something shorter."""

    length: int
    text: str
    shown: str


class _Word(NamedTuple):
    begin: int
    said: str
    """Without quotes and escapes."""
    quote: str
    """That is open at its end; empty: none."""


def completions(
    line: str, commands: Sequence[str], settings: Mapping[str, Sequence[str]]
) -> list[Completion]:
    """Of a line up to the cursor. ``settings``: names that ``/set`` takes, with values."""
    word, blank, argument = line.partition(" ")
    if blank and word == "/image":
        return _paths(argument.lstrip())
    if blank and word == "/set":
        name, blank, value = argument.lstrip().partition(" ")
        return _words(value.lstrip(), settings.get(name, ())) if blank else _words(name, [*settings])
    found = [] if blank or not word.startswith("/") else _words(word, commands)
    # a dropped file
    return found + (_paths(line) if line.startswith(("/", "~/", "'", '"')) else [])


def _words(begun: str, known: Sequence[str]) -> list[Completion]:
    return [Completion(len(begun), word, word) for word in known if word.startswith(begun)]


def _paths(text: str) -> list[Completion]:
    """Of the last of several paths, as they are typed: in quotes, or with blanks behind backslashes."""
    if re.search(r"\s", text) and not re.search(r"['\"\\]", text):
        # one name with blanks, which nobody has quoted
        found = [*_complete(text, _Word(0, text, ""))]
        if found:
            return found
    return [*_complete(text, _last_word(text))]


def _complete(text: str, word: _Word) -> Iterator[Completion]:
    folder, begun = os.path.split(word.said)
    for name, is_folder in _entries(folder):
        if name.startswith(begun) and (begun.startswith(".") or not name.startswith(".")):
            written = _written(os.path.join(folder, name), word.quote, is_folder)
            yield Completion(len(text) - word.begin, written, f"{name}/" if is_folder else name)


def _entries(folder: str) -> list[tuple[str, bool]]:
    """Names, and whether they are folders; none of a folder that cannot be read."""
    try:
        with os.scandir(os.path.expanduser(folder) or ".") as entries:
            return sorted((entry.name, entry.is_dir()) for entry in entries if entry.name.isprintable())
    except (OSError, ValueError):
        return []


def _written(path: str, quote: str, is_folder: bool) -> str:
    """So that ``dropped_paths`` reads it; a folder is gone on with."""
    if quote == "'":
        written = path.replace("'", "'\\''")
    elif quote:
        written = re.sub(r'(["\\])', r"\\\1", path)
    else:
        written = _UNQUOTED.sub(r"\\\g<0>", path)
    return f"{quote}{written}/" if is_folder else f"{quote}{written}{quote}"


def _last_word(text: str) -> _Word:
    """By the rules of a shell."""
    begin, said, quote, escaped = 0, "", "", False
    for at, letter in enumerate(text):
        if escaped:
            said, escaped = said + letter, False
        elif letter == "\\" and quote != "'":
            escaped = True
        elif letter == quote:
            quote = ""
        elif quote:
            said += letter
        elif letter in "'\"":
            quote = letter
        elif letter.isspace():
            begin, said = at + 1, ""
        else:
            said += letter
    return _Word(begin, said, quote)
