"""The thought before an answer, told from it."""

from __future__ import annotations

from enum import Enum, auto

from ..inputs.thinking import THOUGHT_TAGS
from .pieces import undecided

__all__ = ["ThoughtReader"]


class _State(Enum):
    BEGIN = auto()
    THOUGHT = auto()
    BEHIND = auto()
    """The space between a thought and its answer."""
    ANSWER = auto()


class ThoughtReader:
    """Takes an answer piece by piece, and tells its thought apart.

    A thought is at the beginning, between tags. The space around it is left out. What may be the beginning of a tag is
    held back until that is decided."""

    def __init__(self, closing: str = "") -> None:
        """``closing``: the tag of a thought that the prompt has opened."""
        self._closing = closing
        self._state = _State.THOUGHT if closing else _State.BEGIN
        self._held = ""
        self._thinks = False

    def feed(self, text: str) -> tuple[str, str]:
        """What is certain now of the thought, and of the answer; either may be empty."""
        return self._read(text, final=False)

    def finish(self) -> tuple[str, str]:
        """The rest, when no more text comes."""
        return self._read("", final=True)

    def _read(self, text: str, final: bool) -> tuple[str, str]:
        text, self._held = self._held + text, ""
        thought = ""
        if self._state is _State.BEGIN:
            begin = text.lstrip()
            opening = next((tag for tag in THOUGHT_TAGS if begin.startswith(tag)), None)
            if opening is not None:
                self._state, self._closing = _State.THOUGHT, THOUGHT_TAGS[opening]
                text = begin[len(opening) :]
            elif not final and any(tag.startswith(begin) for tag in THOUGHT_TAGS):
                self._held = text
                return "", ""
            else:
                self._state = _State.ANSWER
        if self._state is _State.THOUGHT:
            end = text.find(self._closing)
            if end < 0:
                certain = text if final else text[: len(text) - undecided(text, (self._closing,))]
                thought = certain.rstrip()
                self._held = "" if final else text[len(thought) :]
                return self._stripped(thought), ""
            thought = self._stripped(text[:end].rstrip())
            self._state, text = _State.BEHIND, text[end + len(self._closing) :]
        if self._state is _State.BEHIND:
            text = text.lstrip()
            if text:
                self._state = _State.ANSWER
        return thought, text

    def _stripped(self, thought: str) -> str:
        thought = thought if self._thinks else thought.lstrip()
        self._thinks = self._thinks or bool(thought)
        return thought
