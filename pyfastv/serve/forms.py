"""How the choices of the two kinds of completion look."""

from __future__ import annotations

from typing import Any

from . import replies
from .pool import Piece, TokenProb

__all__ = ["ChatForm", "TextForm"]


class ChatForm:
    """``chat.completion``"""

    def __init__(self, model: str, logprobs: bool, n_top: int) -> None:
        self.head = replies.head("chat.completion", "chatcmpl", model)
        self.chunk_head = {**self.head, "object": "chat.completion.chunk"}
        self._logprobs, self._n_top = logprobs, n_top

    def whole(self, text: str, probs: list[TokenProb], finish_reason: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {
            "index": 0,
            "message": message,
            "logprobs": self._told(probs),
            "finish_reason": finish_reason,
        }

    def opening(self) -> dict[str, Any] | None:
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, piece: Piece) -> dict[str, Any]:
        return {**self._chunk({"content": piece.text}), "logprobs": self._told(piece.probs)}

    def closing(self, finish_reason: str) -> dict[str, Any]:
        return {**self._chunk({}), "finish_reason": finish_reason}

    def _chunk(self, delta: dict[str, str]) -> dict[str, Any]:
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}

    def _told(self, probs: Any) -> dict[str, Any] | None:
        return replies.chat_logprobs(probs, self._n_top) if self._logprobs else None


class TextForm:
    """``text_completion``; ``n_top``: alternatives told for each token, None: no probabilities at all."""

    def __init__(self, model: str, n_top: int | None) -> None:
        self.head = self.chunk_head = replies.head("text_completion", "cmpl", model)
        self._n_top = n_top
        self._length = 0

    def whole(self, text: str, probs: list[TokenProb], finish_reason: str) -> dict[str, Any]:
        return self._choice(text, probs, finish_reason)

    def opening(self) -> dict[str, Any] | None:
        return None

    def piece(self, piece: Piece) -> dict[str, Any]:
        choice = self._choice(piece.text, piece.probs, None)
        self._length += len(piece.text)
        return choice

    def closing(self, finish_reason: str) -> dict[str, Any]:
        return self._choice("", (), finish_reason)

    def _choice(self, text: str, probs: Any, finish_reason: str | None) -> dict[str, Any]:
        told = (
            replies.text_logprobs(probs, self._n_top, self._length)
            if self._n_top is not None and (probs or finish_reason is None)
            else None
        )
        return {"text": text, "index": 0, "logprobs": told, "finish_reason": finish_reason}
