"""The bytes of tokens to text that can be shown: whole characters, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

__all__ = ["PieceReader", "undecided"]


class PieceReader:
    """Turns token bytes into text, piece by piece.

    A token may end inside a character: the character is held back until it is whole (broken UTF-8 becomes
    U+FFFD). Text that may be the start of a stop string is held back until that is decided. One space before
    the first word is left out: SentencePiece writes it, the model does not mean it.
    """

    def __init__(self, stop: Sequence[str] = (), *, keep_space: bool = False) -> None:
        """``keep_space``: of a text that goes on, which begins with it where a word does."""
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self._begun = keep_space
        self.stopped = False
        """True once a stop string came; nothing more is given out then."""
        self.stop_string = ""
        """That came; empty: none yet."""

    def feed(self, data: bytes) -> str:
        """The text that is certain now; may be empty."""
        return self._read(self._decoder.decode(data), final=False)

    def finish(self) -> str:
        """The rest, when no more bytes come."""
        return self._read(self._decoder.decode(b"", final=True), final=True)

    def _read(self, text: str, final: bool) -> str:
        if self.stopped:
            return ""
        if text and not self._begun:
            self._begun = True
            text = text.removeprefix(" ")
        text = self._held + text
        found = [(at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            at, self.stop_string = min(found)
            return text[:at]
        certain = len(text) if final else len(text) - undecided(text, self._stop)
        self._held = text[certain:]
        return text[:certain]


def undecided(text: str, marks: Sequence[str]) -> int:
    """Length of the longest end of ``text``, which has none of these, that one of them begins with."""
    longest = max(map(len, marks), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-length:]) for mark in marks):
            return length
    return 0
