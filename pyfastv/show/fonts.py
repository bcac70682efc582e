"""Fonts for the letters that matplotlib's own lacks: others of this machine, where there are any."""

from __future__ import annotations

import unicodedata
from functools import cache

from .trace import Trace

__all__ = ["families", "letters_without_font"]

# One that has a box for every letter of its script, and no letter.
_LAST_RESORT = "Last Resort"


def letters_without_font(trace: Trace) -> str:
    """The letters of questions and answers that are drawn as boxes, each once: no font of this machine has them."""
    return _search(trace)[1]


def families(trace: Trace) -> list[str]:
    """To draw the questions and answers with: matplotlib's own, then those that have what it lacks."""
    import matplotlib

    return [*matplotlib.rcParams["font.family"], *_search(trace)[0]]


def _search(trace: Trace) -> tuple[tuple[str, ...], str]:
    texts = [text for rule in trace.rules for turn in rule.turns for text in (turn.question, turn.answer)]
    letters = dict.fromkeys("".join(texts))
    return _cover("".join(letter for letter in letters if _is_drawn(letter)))


def _is_drawn(letter: str) -> bool:
    # joiners and variation selectors change their neighbours, and have no shape
    return letter > "\x7f" and unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Mn", "Zs", "Zl", "Zp")


def _cover(letters: str) -> tuple[tuple[str, ...], str]:
    """Families that have those of the letters which the default font lacks, and the letters that none has."""
    from matplotlib import font_manager

    own = font_manager.findfont(font_manager.FontProperties())
    left = [letter for letter in letters if ord(letter) not in _letters_of(own)]
    chosen: list[str] = []
    for font in font_manager.fontManager.ttflist if left else ():
        if font.style != "normal" or _LAST_RESORT in font.name or font.name in chosen:
            continue
        known = _letters_of(font.fname)
        if any(ord(letter) in known for letter in left):
            chosen.append(font.name)
            left = [letter for letter in left if ord(letter) not in known]
        if not left:
            break
    return tuple(chosen), "".join(left)


@cache
def _letters_of(path: str) -> frozenset[int]:
    """Code points; none of a font that cannot be drawn with, such as one of colored bitmaps."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()
