"""Does a text follow a grammar (GBNF)? A plain matcher, written from the description of the format."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Match = Callable[[str, int], frozenset[int]]  # of a text, from a position: where it can end

_TOKEN = re.compile(
    r"\s*(?:(?P<rule>[A-Za-z0-9-]+)\s*::=|(?P<name>[A-Za-z0-9-]+)|(?P<text>\"(?:\\.|[^\"\\])*\")"
    r"|(?P<set>\[(?:\\.|[^\]\\])*\])|(?P<times>[*+?]|\{\d*,?\d*\})|(?P<sign>[|()]))"
)
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))", re.S)


def _characters(text: str) -> list[tuple[str, bool]]:
    """Each with whether it was escaped."""
    found, at = [], 0
    while at < len(text):
        escape = _ESCAPE.match(text, at)
        if escape is None:
            found.append((text[at], False))
            at += 1
            continue
        digits = escape[1] or escape[2] or escape[3]
        letter = {"n": "\n", "r": "\r", "t": "\t"}.get(escape[4] or "", escape[4])
        found.append((chr(int(digits, 16)) if digits else letter, True))
        at = escape.end()
    return found


def _of_set(text: str) -> Match:
    negated = text.startswith("^")
    characters = _characters(text[negated:])
    ranges, at = [], 0
    while at < len(characters):
        first = last = characters[at][0]
        if characters[at + 1 : at + 2] == [("-", False)] and at + 2 < len(characters):
            last, at = characters[at + 2][0], at + 2
        ranges.append((first, last))
        at += 1

    def match(whole: str, begin: int) -> frozenset[int]:
        if begin >= len(whole):
            return frozenset()
        found = any(first <= whole[begin] <= last for first, last in ranges)
        return frozenset({begin + 1} if found != negated else ())

    return match


def _of_text(text: str) -> Match:
    wanted = "".join(character for character, _ in _characters(text))
    return lambda whole, begin: frozenset({begin + len(wanted)} if whole.startswith(wanted, begin) else ())


def _repeated(part: Match, least: int, most: int | None) -> Match:
    def match(whole: str, begin: int) -> frozenset[int]:
        ends, now, count = set({begin} if least == 0 else ()), frozenset({begin}), 0
        while now and (most is None or count < most):
            now = frozenset().union(*(part(whole, at) for at in now))
            count += 1
            if count >= least:
                if now <= ends:
                    break
                ends |= now
        return frozenset(ends)

    return match


class _Grammar:
    def __init__(self, source: str) -> None:
        self.rules: dict[str, Match] = {}
        self._tokens: list[tuple[str, str]] = []
        at = 0
        source = source.rstrip()
        while at < len(source):
            found = _TOKEN.match(source, at)
            assert found is not None, source[at : at + 50]
            self._tokens.append((str(found.lastgroup), found[found.lastgroup or 0]))
            at = found.end()
        while self._tokens:
            kind, name = self._tokens.pop(0)
            assert kind == "rule", name
            self.rules[name] = self._alternatives()

    def _next(self) -> tuple[str, str]:
        return self._tokens[0] if self._tokens else ("", "")

    def _alternatives(self) -> Match:
        parts = [self._sequence()]
        while self._next() == ("sign", "|"):
            self._tokens.pop(0)
            parts.append(self._sequence())
        return lambda whole, begin: frozenset().union(*(part(whole, begin) for part in parts))

    def _sequence(self) -> Match:
        parts: list[Match] = []
        while self._next()[0] in ("name", "text", "set", "times") or self._next() == ("sign", "("):
            kind, token = self._tokens.pop(0)
            if kind == "times":
                bounds = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(token)
                if bounds is None:
                    least, comma, most = token[1:-1].partition(",")
                    bounds = (int(least or 0), int(most) if most else None if comma else int(least))
                parts.append(_repeated(parts.pop(), *bounds))
            elif kind == "name":
                parts.append(self._named(token))
            elif kind == "text":
                parts.append(_of_text(token[1:-1]))
            elif kind == "set":
                parts.append(_of_set(token[1:-1]))
            else:
                parts.append(self._alternatives())
                assert self._tokens.pop(0) == ("sign", ")")

        def match(whole: str, begin: int) -> frozenset[int]:
            ends = frozenset({begin})
            for part in parts:
                ends = frozenset().union(*(part(whole, at) for at in ends))
            return ends

        return match

    def _named(self, name: str) -> Match:
        known: dict[tuple[str, int], Any] = {}

        def match(whole: str, begin: int) -> frozenset[int]:
            if (whole, begin) not in known:
                known[whole, begin] = self.rules[name](whole, begin)
            return known[whole, begin]  # type: ignore[no-any-return]

        return match


def follows(grammar: str, text: str) -> bool:
    """The whole text, from the rule ``root``."""
    return len(text) in _Grammar(grammar).rules["root"](text, 0)
