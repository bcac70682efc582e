"""Answers without OpenAI's frame around them: every chunk of a stream is an object by itself."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, ClassVar, Protocol

from starlette.responses import JSONResponse, Response

from ..engine.job_pool import Job, Piece, Progress, follow
from . import replies
from .answering import Answering
from .errors import ApiError, as_api_error

__all__ = ["EventAnswering", "LineAnswering", "ObjectForm", "line"]


def line(value: Any) -> str:
    """Of a stream of JSON texts, one a line (NDJSON)."""
    return f"{json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n"


class ObjectForm(Protocol):
    """How one kind of answer looks. ``index``: of the job. What comes of a stream is as it is sent; empty: nothing is."""

    def begin(self, jobs: Sequence[Job]) -> None:
        """Before the first piece."""

    def whole(self, pieces: Sequence[Sequence[Piece]], finish_reasons: Sequence[str]) -> Any:
        """Of all jobs, for JSON."""

    def opening(self) -> str:
        """Before any text."""

    def waiting(self) -> str:
        """While there is nothing else to send."""

    def progress(self, index: int, read: dict[str, Any]) -> str:
        """How far a prompt is read, in llama-server's form."""

    def piece(self, index: int, piece: Piece) -> str: ...

    def closing(self, index: int, finish_reason: str) -> str: ...

    def failure(self, error: ApiError) -> str:
        """What went wrong behind the begin of a stream."""


class EventAnswering(Answering):
    """With server-sent events."""

    form: ObjectForm  # type: ignore[assignment]

    async def _whole(self) -> Response:
        pieces = await self._pieces()
        texts = ["".join(piece.text for piece in of_one) for of_one in pieces]
        reasons = [self._finish_reason(index, text) for index, text in enumerate(texts)]
        return JSONResponse(self.form.whole(pieces, reasons))

    async def _events(self, begun: Callable[[Callable[[], None]], object]) -> AsyncGenerator[str, None]:
        try:
            if opening := self.form.opening():
                yield opening
            texts = [""] * len(self.jobs)
            items = follow(self.jobs, progress=self.wanted.progress, patience=self.ping_seconds, begun=begun)
            async with aclosing(items):
                async for item in items:
                    if item is None:
                        yield self.form.waiting()
                        continue
                    index, what = item
                    if isinstance(what, Progress):
                        told = replies.progress(what, time.perf_counter() - self.began)
                        yield self.form.progress(index, told)
                        continue
                    await self._read(index)
                    if isinstance(what, Piece):
                        texts[index] += what.text if self.wanted.failure else ""
                        chunk = self.form.piece(index, what)
                    else:
                        chunk = self.form.closing(index, self._finish_reason(index, texts[index]))
                    if chunk:
                        yield chunk
        except Exception as error:
            yield self.form.failure(as_api_error(error))


class LineAnswering(EventAnswering):
    """With JSON texts, one a line."""

    media_type: ClassVar[str] = "application/x-ndjson"
