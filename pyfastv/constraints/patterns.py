"""Regular expressions as grammars (GBNF): of texts, and of the strings of JSON."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from ..errors import OptionError
from .gbnf import character_class, literal

__all__ = ["Unsupported", "json_string", "text"]

# Python's own parser; JSON Schema's expressions are JavaScript's, most of which are spelt in the same way
_re: Any = import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")

_LONGEST = 500  # characters
_DEEPEST = 60  # groups
_MAX_REPEATED = 1000
_ANY = r'([^"\\\x7F\x00-\x1F] | [\\] (["\\bfnrt] | "u" [0-9a-fA-F]{4}))*'

_Ranges = list[tuple[int, int]]

_LAST = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)
_CATEGORIES: dict[str, _Ranges] = {
    "DIGIT": [(48, 57)],
    "WORD": [(48, 57), (65, 90), (95, 95), (97, 122)],
    "SPACE": [(9, 13), (32, 32)],
}
# these stand in JSON as they are
_PLAIN = [(0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7E), (0x80, _SURROGATES[0] - 1), (_SURROGATES[1] + 1, _LAST)]
# and these by an escape
_ESCAPED = (0x08, 0x09, 0x0A, 0x0C, 0x0D, 0x22, 0x5C)


class Unsupported(OptionError):
    """There is no grammar for an expression."""


def json_string(pattern: str) -> str:
    """A string of JSON in which the expression is found. Raises Unsupported."""
    return f'"\\"" ({_Writer(in_json=True).write(pattern)}) "\\""'


def text(pattern: str) -> str:
    """A text that the expression matches as a whole. Raises Unsupported."""
    return _Writer(in_json=False).write(pattern)


class _Writer:
    def __init__(self, in_json: bool) -> None:
        self._in_json = in_json
        self._any = _ANY if in_json else ""
        self._depth = 0

    def write(self, pattern: str) -> str:
        if len(pattern) > _LONGEST:
            raise Unsupported(f"more than {_LONGEST} characters")
        # JavaScript's way to write what Python has with a P
        pattern = re.sub(r"\(\?<(?![=!])", "(?P<", pattern)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                items = _re.parse(pattern, re.ASCII)
        except (re.error, OverflowError, RecursionError, ValueError) as error:
            raise Unsupported(str(error)) from None
        if items.state.flags & (re.IGNORECASE | re.MULTILINE | re.DOTALL | re.VERBOSE):
            raise Unsupported("flags")
        return self._sequence(items, True, True) or '""'

    def _sequence(self, items: Any, first: bool, last: bool) -> str:
        """``first``, ``last``: at the beginning and the end of the expression, where an anchor can stand."""
        items = list(items)
        if first and items and items[0] in _BEGINNINGS:
            items, first = items[1:], False
        if last and items and items[-1] in _ENDS:
            items, last = items[:-1], False
        if not items:
            return self._any if first or last else ""
        parts: list[str] = []
        run = ""  # of characters
        for i, (kind, value) in enumerate(items):
            at_first, at_last = first and i == 0, last and i == len(items) - 1
            if kind is _re.LITERAL and not (at_first or at_last):
                run += self._spelt(value)
                continue
            if run:
                parts.append(literal(run))
                run = ""
            if kind in (_re.BRANCH, _re.SUBPATTERN):
                parts.append(self._group(kind, value, at_first, at_last))
            else:
                parts += [
                    self._any if at_first else "",
                    self._item(kind, value),
                    self._any if at_last else "",
                ]
        if run:
            parts.append(literal(run))
        return " ".join(part for part in parts if part)

    def _group(self, kind: Any, value: Any, first: bool = False, last: bool = False) -> str:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise Unsupported("groups too deep")
        if kind is _re.SUBPATTERN:
            _, added, removed, inner = value
            if added or removed:
                raise Unsupported("flags")
            alternatives = [inner]
        else:
            alternatives = value[1]
        written = [self._sequence(inner, first, last) or '""' for inner in alternatives]
        self._depth -= 1
        return f"({' | '.join(written)})"

    def _item(self, kind: Any, value: Any) -> str:
        if kind is _re.LITERAL:
            return literal(self._spelt(value))
        if kind is _re.NOT_LITERAL:
            return self._one_of(_without([(value, value)]))
        if kind is _re.ANY:
            return self._one_of(_without([(10, 10), (13, 13)]))
        if kind is _re.IN:
            return self._one_of(_ranges(value))
        if kind in (_re.MAX_REPEAT, _re.MIN_REPEAT):
            least, most, inner = value
            return self._group(_re.SUBPATTERN, (None, 0, 0, inner)) + _times(least, most)
        raise Unsupported(_NAMES.get(kind, kind.name.lower()))

    def _spelt(self, code: int) -> str:
        character = chr(code)
        if _SURROGATES[0] <= code <= _SURROGATES[1]:
            raise Unsupported("half of a character")
        return json.dumps(character, ensure_ascii=False)[1:-1] if self._in_json else character

    def _one_of(self, ranges: _Ranges) -> str:
        if not self._in_json:
            return character_class(_both(ranges, _without([_SURROGATES])))
        plain = _both(ranges, _PLAIN)
        found = [character_class(plain)] if plain else []
        escaped = [code for code in _ESCAPED if any(a <= code <= b for a, b in ranges)]
        found += (literal(self._spelt(code)) for code in escaped)
        if not found:
            raise Unsupported("a class of characters that a JSON string has not")
        return found[0] if len(found) == 1 else f"({' | '.join(found)})"


_BEGINNINGS = ((_re.AT, _re.AT_BEGINNING), (_re.AT, _re.AT_BEGINNING_STRING))
_ENDS = ((_re.AT, _re.AT_END), (_re.AT, _re.AT_END_STRING))
_NAMES = {
    _re.ASSERT: "look-around",
    _re.ASSERT_NOT: "look-around",
    _re.GROUPREF: "a back-reference",
    _re.AT: "an anchor or a word boundary inside",
}


def _times(least: int, most: Any) -> str:
    if least > _MAX_REPEATED or (most != _re.MAXREPEAT and most > _MAX_REPEATED):
        raise Unsupported(f"more than {_MAX_REPEATED} repetitions")
    if most == _re.MAXREPEAT:
        return {0: "*", 1: "+"}.get(least, f"{{{least},}}")
    return "?" if (least, most) == (0, 1) else f"{{{least},{most}}}"


def _ranges(items: Sequence[Any]) -> _Ranges:
    """Of what stands in brackets; sorted, without overlaps."""
    found: _Ranges = []
    negated = False
    for kind, value in items:
        if kind is _re.NEGATE:
            negated = True
        elif kind is _re.LITERAL:
            found.append((value, value))
        elif kind is _re.RANGE:
            found.append(tuple(value))
        elif kind is _re.CATEGORY:
            name = value.name.removeprefix("CATEGORY_")
            of_name = _CATEGORIES.get(name.removeprefix("NOT_"))
            if of_name is None:
                raise Unsupported(f"the class {name.lower()}")
            found += _without(of_name) if name.startswith("NOT_") else of_name
        else:
            raise Unsupported(kind.name.lower())
    return _without(found) if negated else _without(_without(found))


def _without(ranges: _Ranges) -> _Ranges:
    """All other characters."""
    found: _Ranges = []
    begin = 0
    for first, last in sorted(ranges):
        if first > begin:
            found.append((begin, first - 1))
        begin = max(begin, last + 1)
    return [*found, (begin, _LAST)] if begin <= _LAST else found


def _both(ranges: _Ranges, others: _Ranges) -> _Ranges:
    """The characters that are in both."""
    return [(max(a, c), min(b, d)) for a, b in ranges for c, d in others if max(a, c) <= min(b, d)]
