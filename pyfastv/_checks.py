"""Checks of values that come from outside: the message names the value and the limits."""

from __future__ import annotations

import math
import operator
from numbers import Integral, Real
from typing import SupportsFloat, cast

from .errors import OptionError

INT32_MAX = 2**31 - 1


def whole(value: object) -> object:
    """A number without a fraction as an int, in whichever type it comes (5.0); anything else as it is."""
    if isinstance(value, Integral) or not isinstance(value, Real):
        return value
    try:
        number = float(value)
    except OverflowError:  # a fraction of large integers
        return value
    return int(number) if number.is_integer() else value


def integer(name: str, value: object, low: int, high: int = INT32_MAX) -> int:
    """``value`` as an int in [low, high], 5.0 as 5; anything else, booleans included, raises OptionError."""
    try:
        number = None if isinstance(value, bool) else operator.index(whole(value))  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or not low <= number <= high:
        too_high = number is not None and number > high
        wanted = f"from {low} to {high}" if too_high or high != INT32_MAX else f"at least {low}"
        raise OptionError(f"{name} must be an integer, {wanted}; got {value!r}")
    return number


def real(name: str, value: object, wanted: str, low: float = -math.inf, high: float = math.inf) -> float:
    """``value`` as a finite float in [low, high]; anything else, booleans included, raises OptionError.

    ``wanted`` says the range in words."""
    try:
        refused = isinstance(value, (bool, str, bytes))
        number = math.nan if refused else float(cast(SupportsFloat, value))
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or not low <= number <= high:
        raise OptionError(f"{name} must be {wanted}; got {value!r}")
    return number


def shown(value: object) -> str:
    """The beginning of a value's repr, for a message; of any value."""
    try:
        return repr(value)[:200]
    except (RecursionError, ValueError):  # ValueError: an integer of thousands of digits
        return f"a {type(value).__name__} that is too deep or too large to be shown"


def utf8(name: str, value: str) -> str:
    """``value``, if it is text that can be written as UTF-8; else raises OptionError.

    What cannot are lone surrogates: Python keeps bytes of file names and arguments that are not UTF-8 as such, and JSON
    can spell them."""
    if not isinstance(value, str):
        raise OptionError(f"{name} must be text; got {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code, around = ord(value[error.start]), value[max(0, error.start - 20) : error.start + 20]
        what = (
            f"the byte 0x{code - 0xDC00:02X}, which is not UTF-8,"
            if 0xDC80 <= code <= 0xDCFF
            else f"half of a character (the lone surrogate U+{code:04X})"
        )
        raise OptionError(f"{name} has {what} at character {error.start}: {around!r}") from None
    return value
