"""Pieces of llama.cpp's grammars (GBNF): characters, and numbers within bounds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import Decimal

__all__ = ["DECIMALS", "character_class", "literal", "number"]

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
DECIMALS = 15  # digits behind the point
_INTEGER_DIGITS = 16  # as llama.cpp's own numbers


def literal(text: str) -> str:
    """Exactly this text."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    return character if character.isprintable() else _hex(ord(character))


def character_class(ranges: Iterable[tuple[int, int]]) -> str:
    """One character; ``ranges``: first and last code point."""
    return f"[{''.join(_in_class(a) if a == b else f'{_in_class(a)}-{_in_class(b)}' for a, b in ranges)}]"


def _in_class(code: int) -> str:
    return chr(code) if chr(code).isascii() and chr(code).isalnum() else _hex(code)


def _hex(code: int) -> str:
    return f"\\x{code:02X}" if code <= 0xFF else f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}"


def number(
    low: Decimal | None,
    high: Decimal | None,
    *,
    low_open: bool = False,
    high_open: bool = False,
    decimals: int = DECIMALS,
) -> str | None:
    """A JSON number between bounds, which ``open`` excludes; None: there is none.

    It has no exponent, and at most ``decimals`` digits behind the point."""
    if low is not None and high is not None and (low > high or (low == high and (low_open or high_open))):
        return None
    found: list[str] = []
    if low is None or low < 0:
        nearest = -high if high is not None and high <= 0 else Decimal(0)
        nearest_open = high_open and high is not None and high <= 0
        farthest = None if low is None else -low
        found += (
            f'"-" ({rule})' for rule in _magnitudes(nearest, farthest, nearest_open, low_open, decimals)
        )
    if high is None or high >= 0:
        begin = Decimal(0) if low is None or low < 0 else low
        found += _magnitudes(begin, high, low_open and low is not None and low >= 0, high_open, decimals)
    return " | ".join(found) or None


def _magnitudes(
    low: Decimal, high: Decimal | None, low_open: bool, high_open: bool, decimals: int
) -> Iterator[str]:
    """Alternatives of numbers without a sign."""
    first, behind_first = _split(low)
    last, behind_last = (10**_INTEGER_DIGITS, "") if high is None else _split(high)
    if first == last:
        tails = [(literal(str(first)), _fraction(behind_first, behind_last, low_open, high_open, decimals))]
    else:
        tails = [(literal(str(first)), _fraction(behind_first, None, low_open, False, decimals))]
        if first + 1 < last:
            tails.append(
                (f"({_integers(first + 1, last - 1)})", _fraction(None, None, False, False, decimals))
            )
        if high is not None:
            tails.append((literal(str(last)), _fraction(None, behind_last, False, high_open, decimals)))
    yield from (f"{whole} {tail}".strip() for whole, tail in tails if tail is not None)


def _split(value: Decimal) -> tuple[int, str]:
    """The whole part, and the digits behind the point."""
    whole, _, behind = format(value, "f").partition(".")
    return int(whole), behind.rstrip("0")


def _fraction(
    low: str | None, high: str | None, low_open: bool, high_open: bool, decimals: int
) -> str | None:
    """What follows a whole number: a point and digits between bounds, given as digits; None: nothing is possible."""
    ends, digits = _digits(low, high, low_open, high_open, decimals)
    if digits is None:
        return "" if ends else None
    return f'("." ({digits}))' + ("?" if ends else "")


def _digits(
    low: str | None, high: str | None, low_open: bool, high_open: bool, left: int
) -> tuple[bool, str | None]:
    """Whether the digits of a fraction may end here, and alternatives of how they go on; None: they cannot."""
    if low == "" and not low_open:
        low = None
    ends = low is None and (high != "" or not high_open)
    if left == 0:
        return ends, None
    if low is None and high is None:
        return ends, f"[0-9]{{1,{left}}}"
    if high == "":
        return ends, None if high_open or low is not None else f"[0]{{1,{left}}}"
    least, most = int(low[0]) if low else 0, 9 if high is None else int(high[0])
    found, free = [], []
    for digit in range(least, most + 1):
        next_low = low[1:] if low is not None and digit == least else None
        next_high = high[1:] if high is not None and digit == most else None
        if next_low is None and next_high is None:
            free.append(digit)
            continue
        may_end, more = _digits(next_low, next_high, low_open, high_open, left - 1)
        if more is not None:
            found.append(f'"{digit}" ({more})' + ("?" if may_end else ""))
        elif may_end:
            found.append(f'"{digit}"')
    if free:
        found.append(
            f"[{free[0]}-{free[-1]}] [0-9]{{0,{left - 1}}}" if left > 1 else f"[{free[0]}-{free[-1]}]"
        )
    return ends, " | ".join(found) or None


def _integers(low: int, high: int) -> str:
    """Whole numbers from 0 on, without leading zeros."""
    alternatives = []
    for size in range(len(str(low)), len(str(high)) + 1):
        least, most = max(low, 10 ** (size - 1) if size > 1 else 0), min(high, 10**size - 1)
        alternatives.append(_same_size(str(least), str(most)))
    return " | ".join(alternatives)


def _same_size(low: str, high: str) -> str:
    size = len(low)
    if low == high:
        return literal(low)
    if low == "0" * size and high == "9" * size:
        return f"[0-9]{{{size}}}"
    if size == 1:
        return f"[{low}-{high}]"
    if low[0] == high[0]:
        return f'"{low[0]}" ({_same_size(low[1:], high[1:])})'
    least, most = int(low[0]), int(high[0])
    alternatives = [f'"{least}" ({_same_size(low[1:], "9" * (size - 1))})']
    if least + 1 < most:
        alternatives.append(f"[{least + 1}-{most - 1}] [0-9]{{{size - 1}}}")
    return " | ".join([*alternatives, f'"{most}" ({_same_size("0" * (size - 1), high[1:])})'])
