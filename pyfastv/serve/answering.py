"""From a job of the pool to a response: whole, or piece by piece, for as long as the client is there."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any, Protocol, TypeVar

from fastapi import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from ..engine.job_pool import Job, Piece, TokenProb
from ..errors import ClosedError
from . import replies
from .errors import as_api_error, error_body
from .generation import Wanted
from .metrics import Metrics

__all__ = ["ClientGone", "Form", "answer", "while_connected"]

T = TypeVar("T")


class ClientGone(Exception):
    """The client has left; nobody reads an answer."""


class Form(Protocol):
    """How one kind of completion looks."""

    head: dict[str, Any]
    chunk_head: dict[str, Any]

    def whole(self, text: str, probs: list[TokenProb], finish_reason: str) -> dict[str, Any]:
        """The choice of a whole answer."""

    def opening(self) -> dict[str, Any] | None:
        """The choice of the first chunk, before any text."""

    def piece(self, piece: Piece) -> dict[str, Any]:
        """The choice of a chunk."""

    def closing(self, finish_reason: str) -> dict[str, Any]:
        """The choice of the last chunk."""


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """What ``work`` gives; cancels it and raises ClientGone when the client goes away. The body has been read."""

    async def leave() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(leave())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        for task in (working, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def answer(
    request: Request,
    job: Job,
    form: Form,
    wanted: Wanted,
    n_layer: int,
    metrics: Metrics,
    begin: float,
    release: Callable[[], Awaitable[None]],
) -> Response:
    """The response. Errors before the first piece are raised, so that a stream has a status, too.

    ``begin``: perf_counter() when the request came. ``release``: called when the prompt has been read.
    """
    pieces = aiter(job)
    try:
        first = await while_connected(request, _next(pieces))
        metrics.first_piece.observe(time.perf_counter() - begin)
        await release()
        if first is None:
            _refuse_unfinished(job)
        if wanted.stream:
            events = _events(job, form, wanted, n_layer, first, pieces)
            return StreamingResponse(_closing(events, job), media_type="text/event-stream")
        text, probs = await while_connected(request, _rest(first, pieces))
        _refuse_unfinished(job)
        choice = form.whole(text, probs, str(job.finish_reason))
        return JSONResponse({**form.head, "choices": [choice], **_facts(job, wanted, n_layer)})
    except BaseException:
        job.cancel()
        raise


async def _next(pieces: AsyncIterator[Piece]) -> Piece | None:
    return await anext(pieces, None)


async def _rest(first: Piece | None, pieces: AsyncIterator[Piece]) -> tuple[str, list[TokenProb]]:
    text: list[str] = []
    probs: list[TokenProb] = []
    piece = first
    while piece is not None:
        text.append(piece.text)
        probs += piece.probs
        piece = await anext(pieces, None)
    return "".join(text), probs


def _refuse_unfinished(job: Job) -> None:
    if job.finish_reason == "cancelled" or job.report is None:
        raise ClosedError("the answer was cancelled")


def _facts(job: Job, wanted: Wanted, n_layer: int, with_usage: bool = True) -> dict[str, Any]:
    assert job.report is not None
    facts: dict[str, Any] = {"usage": replies.usage(job.report)} if with_usage else {}
    facts["timings"] = replies.timings(job.report)
    if wanted.details:
        facts["fastv_details"] = replies.details(job.report, job.details, n_layer)
    return facts


async def _events(
    job: Job, form: Form, wanted: Wanted, n_layer: int, first: Piece | None, pieces: AsyncIterator[Piece]
) -> AsyncIterator[str]:
    # OpenAI's chunks have a usage of null, where one is asked for, until the last
    head = {**form.chunk_head, "usage": None} if wanted.include_usage else form.chunk_head
    try:
        if (opening := form.opening()) is not None:
            yield _event({**head, "choices": [opening]})
        piece = first
        while piece is not None:
            if piece.text or piece.probs:
                yield _event({**head, "choices": [form.piece(piece)]})
            piece = await anext(pieces, None)
        _refuse_unfinished(job)
        closing = {**head, "choices": [form.closing(str(job.finish_reason))]}
        if wanted.include_usage:
            yield _event(closing)
            yield _event({**head, "choices": [], **_facts(job, wanted, n_layer)})
        else:
            yield _event({**closing, **_facts(job, wanted, n_layer, with_usage=False)})
        yield "data: [DONE]\n\n"
    except Exception as error:
        yield _event(error_body(as_api_error(error)))


async def _closing(events: AsyncIterator[str], job: Job) -> AsyncIterator[str]:
    """Ends the job when the response ends, however that is."""
    try:
        async with aclosing(events):  # type: ignore[type-var]
            async for event in events:
                yield event
    finally:
        job.cancel()


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"
