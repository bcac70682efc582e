"""From jobs of the pool to a response: whole, or piece by piece, for as long as the client is there."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

from fastapi import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from ..engine.job_pool import Job, Piece, Progress, TokenProb, follow
from ..errors import ClosedError
from . import replies
from .connection import NUDGE
from .errors import ApiError, as_api_error, error_body
from .generation import Wanted
from .metrics import Metrics

__all__ = ["Answering", "Chunks", "ClientGone", "Form", "Telling", "event", "while_connected"]

T = TypeVar("T")


class ClientGone(Exception):
    """The client has left; nobody reads an answer."""


class Form(Protocol):
    """How one kind of completion looks. ``index``: of the choice, where there are several."""

    head: dict[str, Any]
    chunk_head: dict[str, Any]

    def whole(self, index: int, text: str, probs: list[TokenProb], finish_reason: str) -> dict[str, Any]:
        """The choice of a whole answer."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """The choice of the first chunk, before any text."""

    def waiting(self, index: int) -> dict[str, Any]:
        """The choice of a chunk that tells something else."""

    def piece(self, index: int, piece: Piece) -> dict[str, Any]:
        """The choice of a chunk."""

    def closing(self, index: int, finish_reason: str) -> dict[str, Any]:
        """The choice of the last chunk."""


class Telling(Protocol):
    """How an answer that is in OpenAI's form of completions is told to clients of a protocol."""

    def begin(self, jobs: Sequence[Job]) -> None:
        """Before all else."""

    def whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The body of a response."""

    def chunk(self, chunk: dict[str, Any]) -> str:
        """Events of a stream; may be empty."""

    def ping(self) -> str:
        """An event that says nothing: clients pass over it."""

    def failed(self, error: ApiError) -> str:
        """The last event of a stream that went wrong."""

    def end(self) -> str:
        """The last event of one that did not."""


class Chunks:
    """As it is: what clients of OpenAI's completions expect."""

    def begin(self, jobs: Sequence[Job]) -> None:
        pass

    def whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        return answer

    def chunk(self, chunk: dict[str, Any]) -> str:
        return event(chunk)

    def ping(self) -> str:
        return ": ping\n\n"  # a comment

    def failed(self, error: ApiError) -> str:
        return event(error_body(error))

    def end(self) -> str:
        return "data: [DONE]\n\n"


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


@dataclass
class Answering:
    """The response to one request, whose jobs are in the pool; each is a choice of it."""

    jobs: Sequence[Job]
    form: Form
    wanted: Wanted
    n_layer: int
    metrics: Metrics
    began: float
    """perf_counter() when the request came."""
    release: Callable[[], Awaitable[None]]
    """Called when the prompts have been read."""
    ping_seconds: float | None = None
    """After which a comment is sent where there is nothing else to send; None: never."""
    telling: Telling = field(default_factory=Chunks)

    media_type: ClassVar[str] = "text/event-stream"
    """Of a stream."""

    def __post_init__(self) -> None:
        self.telling.begin(self.jobs)
        self._unread = set(range(len(self.jobs)))

    async def respond(self, request: Request) -> Response:
        """A stream begins at once, before the prompt is read: who waits for a first byte (a proxy) has it. What goes
        wrong later is an event of it. Raises what goes wrong with a whole answer, which has a status then."""
        if self.wanted.stream:
            state = request.scope.get("state", {})
            events = self._events(lambda nudge: state.__setitem__(NUDGE, nudge))
            return _EventStream(events, self.end, self.media_type)
        try:
            return await while_connected(request, self._whole())
        finally:
            await self.end()

    async def end(self) -> None:
        """Nobody waits for what has not come yet."""
        for job in self.jobs:
            job.cancel()
        await self.release()

    async def _read(self, index: int) -> None:
        """The prompt of one has been read."""
        if index not in self._unread:
            return
        if len(self._unread) == len(self.jobs):
            self.metrics.first_piece.observe(time.perf_counter() - self.began)
        self._unread.remove(index)
        if not self._unread:
            await self.release()

    async def _pieces(self) -> list[list[Piece]]:
        """All of them, of each answer."""
        pieces: list[list[Piece]] = [[] for _ in self.jobs]
        async with aclosing(follow(self.jobs)) as items:
            async for item in items:
                assert item is not None
                index, what = item
                await self._read(index)
                if isinstance(what, Piece):
                    pieces[index].append(what)
        return pieces

    async def _whole(self) -> Response:
        choices = [self._choice(index, of_one) for index, of_one in enumerate(await self._pieces())]
        return JSONResponse(self.telling.whole({**self.form.head, "choices": choices, **self._facts()}))

    def _choice(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        probs = [prob for piece in pieces for prob in piece.probs]
        return self.form.whole(index, text, probs, self._finish_reason(index, text))

    def _finish_reason(self, index: int, text: str) -> str:
        job = self.jobs[index]
        if job.finish_reason == "cancelled" or job.report is None:
            raise ClosedError("the answer was cancelled")
        check = self.wanted.failure if job.finish_reason == "stop" else None
        if (failure := None if check is None else check(text)) is not None:
            raise ApiError(
                500,
                f"the answer does not follow the schema, {failure}: ask again",
                code="schema_not_followed",
            )
        return str(job.finish_reason)

    def _facts(self, with_usage: bool = True) -> dict[str, Any]:
        reports = [job.report for job in self.jobs if job.report is not None]
        facts: dict[str, Any] = {"usage": replies.usage(reports, self.wanted.n)} if with_usage else {}
        facts["timings"] = replies.timings(reports)
        if self.wanted.details:
            facts["fastv_details"] = replies.details(reports[0], self.jobs[0].details, self.n_layer)
        return facts

    async def _events(self, begun: Callable[[Callable[[], None]], object]) -> AsyncGenerator[str, None]:
        tell = self.telling.chunk
        # OpenAI's chunks have a usage of null, where one is asked for, until the last
        head = {**self.form.chunk_head, "usage": None} if self.wanted.include_usage else self.form.chunk_head
        try:
            for index in range(len(self.jobs)):
                if (opening := self.form.opening(index)) is not None:
                    yield tell({**head, "choices": [opening]})
            closings: list[dict[str, Any]] = []
            texts = [""] * len(self.jobs)
            items = follow(self.jobs, progress=self.wanted.progress, patience=self.ping_seconds, begun=begun)
            async with aclosing(items):
                async for item in items:
                    if item is None:
                        yield self.telling.ping()
                        continue
                    index, what = item
                    if isinstance(what, Progress):
                        yield tell(self._progress(head, index, what))
                        continue
                    await self._read(index)
                    if isinstance(what, Piece):
                        texts[index] += what.text if self.wanted.failure else ""
                        told = {} if what.report is None else {"timings": replies.timings([what.report])}
                        yield tell({**head, "choices": [self.form.piece(index, what)], **told})
                    else:
                        reason = self._finish_reason(index, texts[index])
                        closings.append(self.form.closing(index, reason))
                        if len(closings) < len(self.jobs):
                            yield tell({**head, "choices": [closings[-1]]})
            closing = {**head, "choices": closings[-1:]}
            if self.wanted.include_usage:
                yield tell(closing)
                yield tell({**head, "choices": [], **self._facts()})
            else:
                yield tell({**closing, **self._facts(with_usage=False)})
            yield self.telling.end()
        except Exception as error:
            yield self.telling.failed(as_api_error(error))

    def _progress(self, head: dict[str, Any], index: int, progress: Progress) -> dict[str, Any]:
        told = replies.progress(progress, time.perf_counter() - self.began)
        return {**head, "choices": [self.form.waiting(index)], "prompt_progress": told}


class _EventStream(StreamingResponse):
    """Server-sent events. ``end``: called when the response ends, however that is, and if it never begins."""

    def __init__(
        self, events: AsyncGenerator[str, None], end: Callable[[], Awaitable[None]], media_type: str
    ) -> None:
        # a proxy that collects a response before it sends it on (nginx) would hold back what is sent at once
        super().__init__(events, media_type=media_type, headers={"X-Accel-Buffering": "no"})
        self._events, self._end = events, end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._events):
                await super().__call__(scope, receive, send)
        finally:
            await self._end()


def event(value: dict[str, Any], name: str | None = None) -> str:
    """One of server-sent events."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"
