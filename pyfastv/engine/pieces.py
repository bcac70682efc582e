"""The bytes of tokens to text that can be shown: whole characters, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .answer import Report

__all__ = [
    "Piece",
    "PieceReader",
    "TokenProb",
    "TokenReader",
    "chat_logprobs",
    "finite",
    "logprob_entry",
    "token_prob",
    "undecided",
]


@dataclass(frozen=True)
class TokenProb:
    """How likely a token was."""

    token: str
    """Its text; broken characters are U+FFFD."""
    id: int
    bytes: bytes
    logprob: float
    """Natural logarithm of its probability by the model's logits, before any sampler."""
    top: tuple[TokenProb, ...] = ()
    """The likeliest tokens at its place, most likely first; their own ``top`` is empty."""


@dataclass(frozen=True)
class Piece:
    """A piece of an answer."""

    text: str
    """Whole characters, nothing of a stop string."""
    probs: tuple[TokenProb, ...] = ()
    """Of the tokens that became this text, if they were asked for."""
    report: Report | None = None
    """What was done until this piece came, if it was asked for."""


def token_prob(
    token: int, data: bytes, logprob: float, top: Iterable[tuple[int, bytes, float]] = ()
) -> TokenProb:
    """From what the engine tells."""
    others = tuple(token_prob(*other) for other in top)
    return TokenProb(data.decode("utf-8", "replace"), token, data, logprob, others)


def chat_logprobs(probs: Sequence[TokenProb], n_top: int | None = None) -> dict[str, Any]:
    """Of a chat completion's choice, for JSON; ``n_top``: likeliest tokens that are told, None: all that are known."""
    content = [
        {**logprob_entry(prob), "top_logprobs": [logprob_entry(other) for other in prob.top[:n_top]]}
        for prob in probs
    ]
    return {"content": content, "refusal": None}


def finite(logprob: float) -> float:
    """JSON has no infinity: of a token that cannot be."""
    return max(logprob, -9999.0)


def logprob_entry(prob: TokenProb) -> dict[str, Any]:
    """A token in OpenAI's form."""
    return {"token": prob.token, "logprob": finite(prob.logprob), "bytes": list(prob.bytes)}


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


class TokenReader:
    """As :class:`PieceReader`, with the probabilities of the tokens beside the text that they became."""

    def __init__(self, stop: Sequence[str] = (), *, keep_space: bool = False) -> None:
        """See :class:`PieceReader`."""
        self._reader = PieceReader(stop, keep_space=keep_space)
        self._held: list[TokenProb] = []  # of tokens whose text is held back

    @property
    def stopped(self) -> bool:
        """A stop string came."""
        return self._reader.stopped

    @property
    def stop_string(self) -> str:
        """That came; empty: none yet."""
        return self._reader.stop_string

    def feed(self, data: bytes, prob: TokenProb | None = None) -> Piece | None:
        """What is certain now; None: nothing."""
        if prob is not None and not self.stopped:
            self._held.append(prob)
        text = self._reader.feed(data)
        return self._piece(text) if text else None

    def finish(self) -> Piece | None:
        """The rest, with the probabilities of tokens that became no text."""
        if self.stopped:
            return None
        text = self._reader.finish()
        return self._piece(text) if text or self._held else None

    def _piece(self, text: str) -> Piece:
        probs = self._held
        if self.stopped:  # tokens of the stop string became no text
            probs, length = [], 0
            for prob in self._held:
                if length < len(text):
                    probs.append(prob)
                length += len(prob.token)
        self._held = []
        return Piece(text, tuple(probs))


def undecided(text: str, marks: Sequence[str]) -> int:
    """Length of the longest end of ``text``, which has none of these, that one of them begins with."""
    longest = max(map(len, marks), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-length:]) for mark in marks):
            return length
    return 0
