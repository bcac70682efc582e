"""OpenAI's text completions: their requests, and the choices of their answers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from ..engine.job_pool import Piece, TokenProb
from . import replies
from .errors import invalid
from .generation import Generation

__all__ = ["CompletionRequest", "TextForm"]


def _as_prompt(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return value[0]
    return value


class CompletionRequest(Generation):
    """``POST /v1/completions``: text goes on, without a chat template and without pictures."""

    prompt: Annotated[
        str,
        Field(min_length=1),
        BeforeValidator(
            _as_prompt,
            json_schema_input_type=str | Annotated[list[str], Field(min_length=1, max_length=1)],
        ),
    ]
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: Any = Field(default=None, description="Not supported.")
    suffix: Any = Field(default=None, description="Not supported.")
    best_of: int | None = Field(default=None, description="Only 1.")

    def check_supported(self) -> None:
        super().check_supported()
        if self.best_of not in (None, 1):
            raise invalid(f"best_of must be 1; got {self.best_of}", "best_of", "unsupported")

    def _refused(self) -> tuple[str, ...]:
        return (*super()._refused(), "echo", "suffix")

    @property
    def n_probs(self) -> int:
        """Alternatives wanted for each token; at least 1 where probabilities are wanted at all."""
        return 0 if self.logprobs is None else max(1, self.logprobs)


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
