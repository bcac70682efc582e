"""OpenAI's text completions: their requests, and the choices of their answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from ..engine.job_pool import Piece, TokenProb
from . import replies
from .errors import invalid
from .generation import INT32_MAX, Generation

__all__ = ["CompletionRequest", "TextForm"]


def _as_prompts(value: Any) -> Any:
    """Of one prompt a list of it: a text, or a list of tokens."""
    if isinstance(value, str) or (
        isinstance(value, list) and value and not isinstance(value[0], (str, list))
    ):
        return [value]
    return value


Token = Annotated[int, Field(ge=0, le=INT32_MAX)]
PromptText = Annotated[str, Field(min_length=1)]
PromptTokens = Annotated[list[Token], Field(min_length=1)]


class CompletionRequest(Generation):
    """``POST /v1/completions``: texts go on, without a chat template and without pictures."""

    prompt: Annotated[
        list[PromptText | PromptTokens],
        Field(min_length=1),
        BeforeValidator(
            _as_prompts,
            json_schema_input_type=PromptText | PromptTokens | list[PromptText | PromptTokens],
        ),
    ]
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: Any = Field(default=None, description="Not supported.")
    suffix: Any = Field(default=None, description="Not supported.")
    best_of: int | None = Field(default=None, description="As many as n.")

    def check_supported(self) -> None:
        super().check_supported()
        if self.best_of not in (None, 1, self.n):
            raise invalid(f"best_of must be as n, or 1; got {self.best_of}", "best_of", "unsupported")

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
        self._offsets: defaultdict[int, replies.TextOffsets] = defaultdict(replies.TextOffsets)

    def whole(self, index: int, text: str, probs: list[TokenProb], finish_reason: str) -> dict[str, Any]:
        return self._choice(index, text, probs, finish_reason)

    def opening(self, index: int) -> dict[str, Any] | None:
        return None

    def waiting(self, index: int) -> dict[str, Any]:
        return self._choice(index, "", None, None)

    def piece(self, index: int, piece: Piece) -> dict[str, Any]:
        return self._choice(index, piece.text, piece.probs, None)

    def closing(self, index: int, finish_reason: str) -> dict[str, Any]:
        return self._choice(index, "", None, finish_reason)

    def _choice(
        self, index: int, text: str, probs: Sequence[TokenProb] | None, finish_reason: str | None
    ) -> dict[str, Any]:
        told = None
        if self._n_top is not None and probs is not None:
            told = replies.text_logprobs(probs, self._n_top, self._offsets[index])
        return {"text": text, "index": index, "logprobs": told, "finish_reason": finish_reason}
