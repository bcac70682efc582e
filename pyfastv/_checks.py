"""Checks of numbers that come from outside: the message names the value and the limits."""

from __future__ import annotations

import math
import operator
from typing import SupportsFloat, cast

from .errors import OptionError

INT32_MAX = 2**31 - 1


def integer(name: str, value: object, low: int, high: int = INT32_MAX) -> int:
    """``value`` as an int in [low, high]; anything else, booleans included, raises OptionError."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
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
